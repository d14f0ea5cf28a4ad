"""The PyTorch twin by itself: decoding with its cache equals teacher forcing without one."""

import numpy as np
import pytest
import torch
from small_models import load, random_groups, tokens

from a3jax.export.exporter import export_model


@pytest.fixture(scope="module")
def twins(imported, tmp_path_factory):
    """An exported model in both seedings, and with content up to its slot; and one with local attention and two bases."""
    folder = tmp_path_factory.mktemp("twin") / "out"
    export_model(imported("llama"), folder)
    export_model(imported("gemma3_text"), folder.with_name("local"))
    successor, learned, slot = load(folder), load(folder), load(folder)
    learned.config.seeding, slot.config.content = "learned", "slot"
    return {"successor": successor, "learned": learned, "slot": slot, "local": load(folder.with_name("local"))}


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


@pytest.mark.parametrize("which", ["successor", "learned", "slot", "local"])
@pytest.mark.parametrize("order", ["in_order", "random"])
@pytest.mark.parametrize("size", [1, 3, 5])
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


def test_generate_equals_transformers(twins, plain):
    prompt = torch.from_numpy(tokens(9))
    expected = plain.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    np.testing.assert_array_equal(twins["successor"].generate(prompt, max_new_tokens=12), expected)


def test_padding_changes_nothing(twins):
    model, ids = twins["successor"], torch.from_numpy(tokens(9))
    alone = model.generate(ids[1:, 4:], max_new_tokens=6)[0, -6:]
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=6, attention_mask=mask)[1, -6:], alone)
    blank = torch.arange(9).expand(2, 9) % 3 > 0
    filled = model.infill(ids, blank, 4, attention_mask=mask)[1, 4:]
    assert torch.equal(filled, model.infill(ids[1:, 4:], blank[1:, 4:], 4)[0])
    groups = torch.from_numpy(random_groups(0, 2, 9))
    with torch.no_grad():
        for how in ({}, {"groups": groups}):
            cut = {name: value[1:, 4:] for name, value in how.items()}
            padded = model(ids, attention_mask=mask, **how).logits[1, 4:]
            torch.testing.assert_close(padded, model(ids[1:, 4:], **cut).logits[0], atol=1e-5, rtol=0)


def test_generate_stops_at_the_end_token(twins):
    model, prompt = twins["successor"], torch.from_numpy(tokens(9))
    free = model.generate(prompt, max_new_tokens=12)
    first, later = free[:, 9].tolist()[0], free[1, 11].item()
    model.config.eos_token_id = [first, later]
    stopped = model.generate(prompt, max_new_tokens=12)
    model.config.eos_token_id = None
    assert stopped.shape[1] < 21
    assert set(stopped[0, 9:].tolist()) == {first}
    np.testing.assert_array_equal(stopped[1, :10], free[1, :10])


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
