"""The PyTorch twin by itself: decoding with its cache equals teacher forcing without one."""

import copy
import itertools

import numpy as np
import pytest
import torch
from small_models import load, random_groups, tokens
from transformers import GenerationConfig, MaxLengthCriteria, StoppingCriteriaList, TextStreamer

from a3jax.export.exporter import export_model


@pytest.fixture(scope="module")
def twins(imported, tmp_path_factory):
    """An exported model in all seedings, and with content up to its slot; and one with local attention and two bases."""
    folder = tmp_path_factory.mktemp("twin") / "out"
    export_model(imported("llama"), folder)
    export_model(imported("gemma3_text"), folder.with_name("local"))
    successor, learned, slot = load(folder), load(folder), load(folder)
    learned.config.seeding, slot.config.content = "learned", "slot"
    two_sided = load(folder)
    two_sided.config.seeding = "two_sided"
    width = two_sided.config.hidden_size
    two_sided.model.successor_seed = torch.nn.Linear(width, width, bias=False)
    return {
        "successor": successor,
        "learned": learned,
        "two_sided": two_sided,
        "slot": slot,
        "local": load(folder.with_name("local")),
    }


@pytest.fixture(scope="module")
def plain(pretrained):
    """The same model as transformers knows it."""
    return load(pretrained("llama"))


def _teacher_forced(model, ids, groups, blank, least=0):
    """Infilling with tokens from `least` on, from its definition: one full pass per group, nothing kept. One row."""
    ids = torch.where(torch.from_numpy(blank), 0, ids)
    for group in np.unique(groups[blank]):
        with torch.no_grad():
            logits = model(ids[None], groups=torch.from_numpy(groups)[None]).logits[0]
        ids = torch.where(torch.from_numpy(blank & (groups == group)), least + logits[:, least:].argmax(-1), ids)
    return ids


BLANK = np.zeros((2, 20), bool)
BLANK[0, [0, 3, 4, 5, 11, 12, 19]] = True  # rows differ in how many they blank, and one gives no first token
BLANK[1, 6:10] = True


@pytest.mark.parametrize(
    ("which", "order", "size"),
    [
        *itertools.product(["successor", "learned", "two_sided", "slot"], ["in_order", "random"], [1, 3, 5]),
        ("local", "random", 3),
        pytest.param("local", "in_order", 5, marks=pytest.mark.long),
    ],
)
def test_infill_equals_teacher_forcing(which, order, size, twins):
    ids, model = torch.from_numpy(tokens(20)), twins[which]
    rank = np.stack([np.random.default_rng(row).permutation(20) for row in range(2)]) * 0.5 - 3
    ranks = torch.from_numpy(rank) if order == "random" else order
    filled = model.infill(ids, torch.from_numpy(BLANK), size, ranks, fillable=torch.ones(300, dtype=torch.bool))
    for row in range(2):
        given, groups = int((~BLANK[row]).sum()), np.arange(20)
        blanks = sorted(np.flatnonzero(BLANK[row]), key=lambda i, row=row: rank[row, i] if order == "random" else i)
        for place, i in enumerate(blanks):
            groups[i] = 20 + (given + place) // size  # slots are counted from the first given token
        expected = _teacher_forced(model, ids[row], groups, BLANK[row])
        np.testing.assert_array_equal(filled[row], expected)
    assert (filled != ids)[torch.from_numpy(BLANK)].any()
    np.testing.assert_array_equal(filled[torch.from_numpy(~BLANK)], ids[torch.from_numpy(~BLANK)])


@pytest.mark.parametrize(("order", "size"), [("random", 3), ("spans", 4), ("spans", 1)])
def test_drawn_orders(order, size, twins):
    ids = torch.from_numpy(tokens(20)).clamp(min=1)
    blank, fillable = torch.from_numpy(BLANK), torch.arange(300) > 0  # 0 marks what is not yet filled
    generator = torch.Generator().manual_seed(3)
    steps = [step.clone() for step in twins["successor"].steps(ids, blank, size, order, 0.0, generator, None, fillable)]
    groups = 20 + sum((step == 0).int() for step in steps).numpy()  # how many steps each blank was left open
    assert torch.equal(steps[-1][~blank], ids[~blank])
    for row in range(2):
        here, places = groups[row], np.flatnonzero(BLANK[row])
        sizes = np.unique(here[places], return_counts=True)[1]
        if order == "spans":  # neighbours together, never across the edge of a span, spans counted from token 1
            spans = {place: (place - 1) // size for place in places}
            assert len({(spans[place], here[place]) for place in places}) == len(set(spans.values())) == len(sizes)
        else:
            begin = (~BLANK[row]).sum() % size
            ends = np.unique([*range(size, begin + len(places), size), begin + len(places)])
            assert sizes.tolist() == np.diff([begin, *ends]).tolist()
        assert (np.diff(here[places]) < 0).any()  # not from left to right
        expected = _teacher_forced(twins["successor"], ids[row], np.where(BLANK[row], here, range(20)), BLANK[row], 1)
        np.testing.assert_array_equal(steps[-1][row], expected)


class Seen(TextStreamer):
    """Keeps what it is shown instead of printing it."""

    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ids.append(None)


ASKED = [
    {"max_new_tokens": 12},
    {"max_length": 15, "do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9},
    {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2},
    {"max_new_tokens": 5, "use_cache": False},
    {"max_new_tokens": 5, "cache_implementation": "static"},
    {
        "generation_config": GenerationConfig(
            max_new_tokens=12, repetition_penalty=1.5, eos_token_id=[*range(60)], pad_token_id=1
        )
    },
    {"max_new_tokens": 12, "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(13)])},
]


@pytest.mark.parametrize("how", ASKED, ids=lambda how: "-".join(how))
def test_generate_is_that_of_transformers(how, twins, plain):
    """Token by token as transformers' own class of the same weights, with a padded prompt in the batch."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    texts = []
    for model in (twins["successor"], plain):
        torch.manual_seed(0)
        asked = {"eos_token_id": None, "pad_token_id": 0} | how if "generation_config" not in how else how
        texts.append(model.generate(torch.from_numpy(tokens(9)), attention_mask=mask, **asked))
    assert texts[0].shape[1] > 9
    torch.testing.assert_close(texts[0], texts[1], rtol=0, atol=0)


def test_a_streamer_sees_every_token(twins):
    ids, seen = torch.from_numpy(tokens(9))[:1], Seen()
    text = twins["slot"].generate(ids, max_new_tokens=5, eos_token_id=None, pad_token_id=0, streamer=seen)
    assert seen.ids == [*text[0].tolist(), None]


@pytest.mark.parametrize("asked", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_learned_seeds_are_asked_from_left_to_right(asked, twins):
    """A learned query sees all before its token: groups of one in order, with a pass of its own for each token."""
    ids, model = torch.from_numpy(tokens(9)), twins["learned"]
    text = model.generate(ids, max_new_tokens=6, eos_token_id=None, pad_token_id=0, **asked)
    blank = np.arange(15) >= 9
    for row in text:
        np.testing.assert_array_equal(row, _teacher_forced(model, row, np.arange(15), blank))
    with torch.no_grad():
        queried = model(text, groups=torch.arange(15).expand(2, 15)).logits
        torch.testing.assert_close(model(text).logits[:, :-1], queried[:, 1:], atol=1e-5, rtol=0)


def test_forward_takes_what_transformers_does(twins, plain):
    model, ids = twins["successor"], torch.from_numpy(tokens(12))
    position, embeds = torch.arange(12) * 2 + 5, plain.get_input_embeddings()(ids)
    each = {"inputs_embeds": embeds, "position_ids": position[None], "output_hidden_states": True, "use_cache": True}
    ours, theirs = (one(labels=ids, num_items_in_batch=7, **each) for one in (model, plain))
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=0)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for a, b in zip(ours.hidden_states, theirs.hidden_states):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    logits, past = model(ids[:, :8], return_dict=False)
    torch.testing.assert_close(logits, model(ids[:, :8]).logits, atol=0, rtol=0)
    rest = model(ids[:, 8:], past_key_values=past, logits_to_keep=2).logits
    torch.testing.assert_close(rest, plain(ids).logits[:, -2:], atol=1e-5, rtol=0)
    window = (position[:, None] - position[None]).abs()[None, None] < 8  # of both sides
    added = torch.zeros(1, 1, 12, 12).masked_fill(~window, torch.finfo(torch.float32).min)
    ours, theirs = (one(ids, attention_mask=mask).logits for one, mask in [(model, window), (plain, added)])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, attention_mask=added).logits, ours, atol=1e-5, rtol=0)
    for what, wrong in {
        "one of input_ids": {},
        "attention weights": {"input_ids": ids, "output_attentions": True},
        "groups are for": {"input_ids": ids, "groups": ids, "use_cache": True},
        "has shape B x T": {"input_ids": ids, "groups": ids, "attention_mask": window},
    }.items():
        with pytest.raises(ValueError, match=what):
            model(**wrong)


def test_recomputed_layers_have_the_same_gradients(twins):
    model, ids = twins["successor"].train(), torch.from_numpy(tokens(12))
    groups, found = torch.from_numpy(random_groups(2, 3, 12)), []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        (model(ids, labels=ids, use_cache=True).loss + model(ids, groups=groups, labels=ids).loss).backward()
        found.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    model.gradient_checkpointing_disable()
    model.eval()
    torch.testing.assert_close(*found)


def test_peft_adapts_and_merges(twins, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids = torch.from_numpy(tokens(12))
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
    model = peft.get_peft_model(copy.deepcopy(twins["slot"]), settings).train()
    model(input_ids=ids, labels=ids, groups=torch.from_numpy(random_groups(2, 3, 12))).loss.backward()
    changed = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert all(parameter.grad.abs().sum() > 0 for parameter in changed)
    with torch.no_grad():
        for parameter in changed:
            parameter -= parameter.grad
    how = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    text = model.eval().generate(input_ids=ids, **how)
    assert torch.equal(model.merge_and_unload().generate(ids, **how), text)


def test_padding_changes_nothing(twins):
    model, ids = twins["successor"], torch.from_numpy(tokens(9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    blank = torch.arange(9).expand(2, 9) % 3 > 0
    filled = model.infill(ids, blank, 4, attention_mask=mask)[1, 4:]
    assert torch.equal(filled, model.infill(ids[1:, 4:], blank[1:, 4:], 4)[0])
    groups = torch.from_numpy(random_groups(0, 2, 9))
    with torch.no_grad():
        for how in ({}, {"groups": groups}):
            cut = {name: value[1:, 4:] for name, value in how.items()}
            padded = model(ids, attention_mask=mask, **how).logits[1, 4:]
            torch.testing.assert_close(padded, model(ids[1:, 4:], **cut).logits[0], atol=1e-5, rtol=0)


def test_draws_repeat_with_the_generator(twins):
    ids, blank = torch.from_numpy(tokens(16)), torch.arange(16).expand(2, 16) >= 8

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return twins["successor"].infill(ids, blank, 2, "random", temperature=1.0, generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_losses(twins, plain):
    ids = torch.from_numpy(tokens(12))
    labels = ids.clone()
    labels[:, :4] = -100
    model, groups = twins["successor"], torch.from_numpy(random_groups(4, 3, 12))
    torch.testing.assert_close(model(ids, labels=labels).loss, plain(ids, labels=labels).loss)
    result = model(ids, groups=groups, labels=labels)
    log_probs = result.logits.log_softmax(-1).gather(2, ids[..., None])[:, 4:]
    torch.testing.assert_close(result.loss, -log_probs.mean())


def test_a_first_group_sees_nothing_and_gradients_are_finite(twins):
    model, ids = twins["learned"], torch.from_numpy(tokens(12))
    groups = torch.from_numpy(random_groups(0, 3, 12))
    logits = model(ids, groups=groups).logits
    first = logits[groups == 0]
    assert torch.equal(first, first[:1].expand_as(first))
    model(ids, groups=groups, labels=ids).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_unknown_orders_are_refused(twins):
    with pytest.raises(ValueError, match="must be 'in_order', 'random', 'spans', or"):
        twins["successor"].infill(torch.zeros(1, 2).long(), torch.ones(1, 2), order="outside_in")
