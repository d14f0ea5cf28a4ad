"""What is learned: each objective's loss against a loop over tokens, and runs of each."""

import dataclasses
import itertools
import json

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from flax import nnx

import a3jax
from a3jax.attention import chunked
from a3jax.checkpoint.folder import find
from a3jax.cli import main
from a3jax.commands.curriculum import Curriculum, CurriculumOptions
from a3jax.config import MASKED, AdaptConfig, Config, DataConfig, DiffusionConfig, FimConfig, ModelConfig, Stage, TrainConfig
from a3jax.curriculum import Plateau, direct
from a3jax.decode.document import lay_out
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.generate.text_likelihood import blanks_log_likelihoods
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_masking, example_keys
from a3jax.train import metrics
from a3jax.train.counts import counted_masked, full_window
from a3jax.train.loop import train
from a3jax.train.objectives.any_order import AnyOrder
from a3jax.train.objectives.diffusion import Diffusion
from a3jax.train.objectives.fim import FillInTheMiddle, rearranged

HOW = Compute(attention="dense")
PREFIX, SUFFIX, MIDDLE = MARKS = (41, 42, 43)
START, END = 46, 47
WORDS = 40


@pytest.fixture(scope="module")
def batch(packed):
    """Windows of documents: numbers, so that every token tells where it stood."""
    tokens = np.random.default_rng(2).integers(0, WORDS, packed.shape)
    first = np.diff(packed, axis=1, prepend=-1) != 0
    last = np.diff(packed, axis=1, append=-1) != 0
    last[:, -1] = False  # the window ends before the document does
    tokens = np.where(first, START, np.where(last, END, tokens)) * (packed > 0)
    return {"tokens": tokens.astype(np.int32), "segments": packed}


@pytest.mark.parametrize(("step", "anneal"), [(0, 0), (7, 7)])
def test_the_loss_of_diffusion_equals_a_loop_over_tokens(step, anneal, tiny, network, batch):
    config = tiny(layers=2)
    _, params = nnx.split(network(config))
    keys = example_keys(0, 0, len(batch["tokens"]))
    sums = jax.jit(Diffusion(config, HOW, 40, anneal=anneal).sums)(params, batch, keys, step=step)
    masking = jax.tree.map(np.asarray, draw_masking(keys, batch["segments"]))
    total = 0.0
    for row, segments in enumerate(batch["segments"]):
        for number in np.unique(segments[segments > 0]):
            place = np.flatnonzero(segments == number)
            tokens, weight = batch["tokens"][row, place], masking.weight[row, place]
            logits = brute_force.masked_stream(config, nnx.to_pure_dict(params), tokens, masking.masked[row, place])
            log_p = brute_force.log_softmax(logits)
            total -= sum(weight[t] * log_p[t - 1, tokens[t]] for t in range(1, len(place)))
    assert float(sums.loss) == pytest.approx(total, rel=1e-5)
    documents = sum(len(np.unique(row[row > 0])) for row in batch["segments"])
    assert int(sums.tokens) == masking.predicted.sum() == (batch["segments"] > 0).sum() - documents
    assert int(sums.counts.predicted) == masking.masked.sum()


@pytest.mark.parametrize(
    ("block", "attention"),
    long_after(2, [(5, "dense"), (5, "chunked"), *itertools.product([1, 24], ["dense", "chunked"])]),
)
def test_the_loss_of_block_diffusion_equals_a_pass_for_each_block(block, attention, tiny, network, batch, monkeypatch):
    monkeypatch.setattr(chunked, "ROW_BLOCK", 12)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 8)
    config = tiny(layers=2)
    _, params = nnx.split(network(config))
    keys = example_keys(0, 0, len(batch["tokens"]))
    objective = Diffusion(config, Compute(attention=attention), 40, block)
    sums, gradient = jax.jit(
        jax.value_and_grad(lambda p: ((sums := objective.sums(p, batch, keys)).loss, sums), has_aux=True)
    )(params)
    sums = sums[1]
    masking = jax.tree.map(np.asarray, draw_masking(keys, batch["segments"], block=block))
    total = 0.0
    for row, segments in enumerate(batch["segments"]):
        for number in np.unique(segments[segments > 0]):
            place = np.flatnonzero(segments == number)
            tokens, weight, masked = batch["tokens"][row, place], masking.weight[row, place], masking.masked[row, place]
            log_p = brute_force.block_log_probs(config, nnx.to_pure_dict(params), tokens, masked, place // block)
            total -= sum(weight[t] * log_p[t, tokens[t]] for t in range(1, len(place)))
    assert float(sums.loss) == pytest.approx(total, rel=1e-5)
    assert int(sums.counts.content) == 2 * (batch["segments"] > 0).sum()
    if block == 1:
        in_order = AnyOrder(config, Stage(1), HOW, 40).sums(params, batch, keys)
        assert float(sums.loss) == pytest.approx(float(in_order.loss), rel=1e-5)
    if block == 24:
        whole = jax.grad(lambda p: Diffusion(config, HOW, 40).sums(p, batch, keys).loss)(params)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_rows_come_to_see_what_is_ahead_step_by_step(tiny, network, batch):
    config = tiny(layers=2)
    _, params = nnx.split(network(config))
    objective, keys = Diffusion(config, HOW, 40, anneal=4), example_keys(0, 0, len(batch["tokens"]))
    keys_seen = [float(objective.sums(params, batch, keys, step=step).counts.content_keys) for step in range(6)]
    lengths = [np.bincount(row[row > 0])[1:] for row in batch["segments"]]
    assert keys_seen[0] == sum((n * (n + 1) // 2).sum() for n in lengths)
    assert keys_seen[4] == keys_seen[5] == sum((n * n).sum() for n in lengths)
    assert sorted(keys_seen) == keys_seen
    assert len(set(keys_seen)) == 5


@pytest.mark.parametrize("block", [0, 4])
def test_plans_count_what_full_windows_hold(block, tiny):
    draws, length, window = 2000, 32, 7
    segments = np.ones((draws, length), np.int32)
    model = tiny(local_layers=(1,), local_window=window)
    found = counted_masked(draw_masking(example_keys(0, 0, draws), segments, block=block), segments, model)
    planned = full_window(length, block, window)
    assert float(found.content) == draws * planned.content
    assert float(found.predicted) / draws == pytest.approx(planned.predicted, rel=0.05)
    assert float(found.content_keys) / draws == pytest.approx(planned.content_keys, rel=0.05)
    assert float(found.local_content_keys) / draws == pytest.approx(planned.local_content_keys, rel=0.05)


def fim(rate=1.0, spm=0.0):
    return FimConfig(rate=rate, spm=spm, tokens=MARKS)


@pytest.mark.parametrize("spm", [0.0, 1.0])
@pytest.mark.parametrize("start", [True, False])
def test_documents_are_cut_in_three_and_put_together_again(spm, start, tiny, batch):
    config = tiny(start_token=START, end_tokens=(END,), starts=start)
    many = {name: np.repeat(x, 60, 0) for name, x in batch.items()}
    moved = np.asarray(rearranged(example_keys(0, 0, 180), many["tokens"], many["segments"], config, fim(spm=spm)))
    seen = set()
    for tokens, result, segments in zip(many["tokens"], moved, many["segments"]):
        np.testing.assert_array_equal(result[segments == 0], tokens[segments == 0])
        for number in np.unique(segments[segments > 0]):
            before, after = tokens[segments == number].tolist(), result[segments == number].tolist()
            head = 1 if start else 0
            if len(before) - head - 4 <= 0:
                assert after == before
                continue
            assert after[:head] == before[:head]
            assert after[-1] == END
            assert [after.count(mark) for mark in MARKS] == [1, 1, 1]
            p, s, m = (after.index(mark) for mark in MARKS)
            assert p == head < s < m
            first, suffix, rest = after[p + 1 : s], after[s + 1 : m], after[m + 1 : -1]
            assert first + rest + suffix == before[head : head + len(before) - head - 4]
            assert not (spm and first)
            seen.add((len(first), len(suffix), len(rest)))
    assert len(seen) > 30


def test_as_many_documents_are_rearranged_as_the_rate_says(tiny, batch):
    config = tiny(start_token=START, end_tokens=(END,))
    many = {name: np.repeat(x[:1], 400, 0) for name, x in batch.items()}
    moved = rearranged(example_keys(0, 0, 400), many["tokens"], many["segments"], config, fim(rate=0.3, spm=0.5))
    changed = (np.asarray(moved) == MIDDLE).any(1)
    assert changed.mean() == pytest.approx(0.3, abs=0.07)
    assert (np.asarray(moved)[~changed] == many["tokens"][~changed]).all()
    in_front = np.asarray(moved)[changed][:, 2] == SUFFIX
    assert in_front.mean() > 0.4


def test_the_loss_of_fim_is_that_of_what_was_rearranged(tiny, network, batch):
    config = tiny(layers=2, start_token=START, end_tokens=(END,))
    _, params = nnx.split(network(config))
    keys = example_keys(0, 0, len(batch["tokens"]))
    in_order = AnyOrder(config, Stage(1), HOW, 40)
    found = FillInTheMiddle(in_order, fim()).sums(params, batch, keys)
    moved = rearranged(keys, jnp.asarray(batch["tokens"]), jnp.asarray(batch["segments"]), config, fim())
    assert float(found.loss) == pytest.approx(float(in_order.sums(params, batch | {"tokens": moved}, keys).loss))
    assert float(found.loss) != pytest.approx(float(in_order.sums(params, batch, keys).loss))


def of(experiment, objective, run, **changes):
    config = experiment(run)
    model = dataclasses.replace(config.model, vocab=261)
    changes = {"curriculum": (Stage(4),), "model": model, **changes}
    return dataclasses.replace(config, objective=objective, **changes)


@pytest.mark.parametrize(
    ("objective", "options", "figures"),
    long_after(
        2,
        [
            ("block_diffusion", {"diffusion": DiffusionConfig(block=3)}, {"ar", "bound"}),
            ("fim", {"fim": FimConfig(tokens=(258, 259, 260))}, {"ar", "in_order_4", "random_1", "random_4", "random_8"}),
            ("diffusion", {"diffusion": DiffusionConfig(anneal=3)}, {"ar", "bound"}),
        ],
    ),
)
def test_a_run_of_each_objective_says_what_it_is_and_answers_accordingly(
    objective, options, figures, experiment, tmp_path, capsys
):
    summary = train(of(experiment, objective, "run", **options))
    assert set(summary.nll) == figures
    record = find(experiment("run").run_folder).record
    assert (record.objective, record.stages, record.steps) == (objective, (objective,), 4)
    lines = metrics.read(experiment("run").run_folder)
    assert {line["stage"] for line in lines if "stage" in line} == {objective}
    assert any("nll_error/bound" in line for line in lines) == (objective in MASKED)

    model = a3jax.load(summary.run)
    left = a3jax.infill(model, "one [[3]] three", mode="ar")
    assert len(left.tokens) == len(left.log_probs)
    family = find(experiment("run").run_folder)
    export_model(family, tmp_path / "llama", "llama")
    assert objective in (tmp_path / "llama" / "README.md").read_text()
    if objective in MASKED:
        with pytest.raises(UserError, match="has no two streams; export it as 'llama' or 'gguf'"):
            export_model(family, tmp_path / "a3")
        assert record.mask_block == {"diffusion": 0, "block_diffusion": 3}[objective]
        filled = a3jax.infill(model, "one [[6]] three", mode=objective, steps=3)
        assert filled.forwards == {"diffusion": 3, "block_diffusion": 6}[objective]
        score = a3jax.log_likelihood(model, "one two three", order="bound", orders=4)
        assert score.is_bound
        assert score.error > 0
        (tmp_path / "text.txt").write_text("one two three")
        main(["score", summary.run, "--text", "one two three", "--order", "bound", "--orders", "4", "--json"])
        scored = last(capsys)
        assert scored["log_likelihood_bound"] == pytest.approx(score.total)
        assert scored["monte_carlo_error"] == pytest.approx(score.error)
        main(["evaluate", summary.run, "--tasks", "likelihood", "--text", str(tmp_path / "text.txt"), "--json"])
        table = last(capsys)["tasks"]["likelihood"]["tables"]["likelihood"]
        assert set(table) == {"ar", "bound"}
        filled = lay_out(("one ", " three"), ["two"], model.codec)
        assert blanks_log_likelihoods(model, [filled], Decoding(mode=objective))[0].is_bound
        for order in ("random_4", "in_order_2"):
            with pytest.raises(UserError, match=f"this one's objective is {objective}; give bound or ar"):
                a3jax.log_likelihood(model, "one two three", order=order)
        with pytest.raises(UserError, match=f"this one's objective is {objective}; give mode {objective} or ar"):
            a3jax.infill(model, "one [[6]] three", mode="dynamic")
    else:
        template = "one [[3]] three [[2]] four"
        filled = a3jax.infill(model, template, mode="fim", temperature=1.0)
        start, pieces = [256], {"before": "one ", "between": " three ", "behind": " four"}
        spaces = {name: model.codec.encode(text, inside=True) for name, text in pieces.items()}
        first, second = (list(blank.tokens) for blank in filled.blanks)
        asked = [
            (start + [258, *spaces["before"], 259, *spaces["between"], 260], first),
            (start + [258, *spaces["before"], *first, *spaces["between"], 259, *spaces["behind"], 260], second),
        ]
        for blank, (prompt, found) in zip(filled.blanks, asked, strict=True):
            given = [True] * len(prompt) + [False] * len(found)
            score = a3jax.token_log_likelihood(model, prompt + found, given)
            assert score.total == pytest.approx(blank.log_prob, abs=1e-4)
        assert filled.forwards == 5
        document = lay_out(("one ", " three "), [first], model.codec)
        (alone,) = blanks_log_likelihoods(model, [document], Decoding(mode="fim"))
        assert alone.total == pytest.approx(filled.blanks[0].log_prob, abs=1e-4)
        with pytest.raises(UserError, match="order bound is for models of masked diffusion"):
            a3jax.log_likelihood(model, "one two three", order="bound")
        with pytest.raises(UserError, match="mode diffusion is for models of objective diffusion"):
            a3jax.infill(model, "one [[6]] three", mode="diffusion")


def last(capsys):
    """What a command answered."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.long
def test_objective_ar_is_a3_from_left_to_right(experiment):
    losses = {}
    for objective in ("a3", "ar"):
        train(of(experiment, objective, objective))
        losses[objective] = [line["loss"] for line in metrics.read(experiment(objective).run_folder) if "loss" in line]
    assert len(losses["ar"]) == 4
    assert losses["ar"] == losses["a3"]


def test_an_older_record_is_that_of_an_any_order_model(model_folder, tmp_path):
    record = json.loads((model_folder / "record.json").read_text())
    del record["objective"], record["mask_block"], record["fim_tokens"]
    folder = tmp_path / "old"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "record.json").unlink()
    (folder / "record.json").write_text(json.dumps(record))
    assert find(folder).record.objective == "a3"


SMALL = ModelConfig("llama", 48, 16, 24, 1, 2, 1, 8, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curriculum": direct(10)}, r"curriculum.0 \(random_4\) draws orders, and objective diffusion has none"),
        ({"ar_share": 0.5}, "ar_share is 0.5, which belongs to objective a3"),
        ({"content": "slot"}, "content is slot, but objective diffusion has no groups"),
        ({"seeding": "learned"}, "seeding is learned, but objective diffusion predicts from the token before"),
        ({"seeding": "two_sided"}, "seeding is two_sided, but objective diffusion predicts from the token before"),
        ({"adapt": AdaptConfig(rank=4)}, "give adapt.stream both, or adapt.rank 0"),
        ({"adapt": AdaptConfig(distill=0.5)}, "objective diffusion has no teacher"),
        ({"fim": FimConfig(rate=0.5)}, "fim is given options, but the objective is diffusion"),
        ({"objective": "ar", "diffusion": DiffusionConfig(5)}, "diffusion is given options, but the objective is ar"),
        ({"diffusion": DiffusionConfig(block=8)}, "diffusion.block is 8, which belongs to objective block_diffusion"),
        ({"objective": "block_diffusion", "diffusion": DiffusionConfig(block=0)}, "diffusion.block is 0; it must be"),
        ({"objective": "block_diffusion", "diffusion": DiffusionConfig(5)}, "diffusion.anneal is 5, which belongs to"),
        ({"diffusion": DiffusionConfig(-1)}, "diffusion.anneal is -1"),
        ({"objective": "fim"}, "fim.tokens is missing; give three ids"),
        ({"objective": "fim", "fim": FimConfig(tokens=(1, 2, 2))}, "fim.tokens is 1, 2, 2; give three ids"),
        ({"objective": "fim", "fim": FimConfig(1.5, tokens=(1, 2, 3))}, "fim.rate is 1.5; it must be from 0 to 1"),
        (
            {"objective": "fim", "fim": FimConfig(tokens=(1, 2, 3)), "data": DataConfig(packing="best_fit", overlap=8)},
            "data.overlap is 8, but objective fim rearranges documents whole",
        ),
        ({"train": TrainConfig(keep_best=1)}, "train.best_order is random_4, but objective diffusion is evaluated by bound"),
        ({"objective": "a3", "train": TrainConfig(keep_best=1, best_order="bound")}, "train.best_order is bound"),
        ({"curriculum": (Stage(9, plateau=Plateau("random_1")),)}, "curriculum.0.plateau.order is random_1"),
    ],
)
def test_what_means_nothing_with_an_objective_is_refused_in_a_line(changes, message):
    plain = {"name": "test", "model": SMALL, "objective": "diffusion", "curriculum": (Stage(10),)}
    with pytest.raises(UserError, match=message):
        Config(**{**plain, **changes})


def test_masks_are_no_orders_to_show():
    config = Config(name="test", model=SMALL, objective="diffusion", curriculum=(Stage(10),))
    with pytest.raises(UserError, match="objective diffusion draws masks and no orders"):
        Curriculum(config, CurriculumOptions()).run()


def test_other_objectives_train_all_weights_unless_told_otherwise():
    config = Config(name="test", source="somewhere", objective="diffusion", curriculum=(Stage(10),))
    assert not config.trains_adapters
    assert dataclasses.replace(config, adapt=AdaptConfig(rank=4, stream="both")).trains_adapters
    assert dataclasses.replace(config, objective="a3").trains_adapters
