"""`a3jax data show` and `bench`: what is shown is what training reads, and what a query sees is what the masks say."""

import dataclasses
import io

import brute_force
import jax.numpy as jnp
import numpy as np
import pytest

from a3jax.config import Config, DataConfig, ModelConfig, Stage
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.ordering import draw_order, example_keys
from a3jax.show.batches import print_shown, show
from a3jax.show.throughput import PARTS, bench
from a3jax.terminal import Terminal

L = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Best fit with overlap, so that windows hold whole documents, pieces with context, and padding."""
    folder = tmp_path_factory.mktemp("texts")
    for i, size in enumerate([5, 12, 100, 33, 7, 21]):
        (folder / f"{i}.txt").write_text("".join(chr(97 + (i * 7 + j) % 26) for j in range(size)))
    prepare([str(folder)], folder / "corpus", Preparation("bytes", held_out=0.0, workers=1))
    sizes = {"vocab": 258, "width": 16, "ff_width": 24, "layers": 1, "query_heads": 2, "kv_heads": 1, "head_width": 8}
    return Config(
        name="test",
        model=ModelConfig(family="llama", context=64, **sizes),
        data=DataConfig(str(folder / "corpus"), length=L, batch=6, packing="best_fit", overlap=6),
        curriculum=(Stage(2), Stage(3, "random", 4, given=0.3)),
    )


@pytest.mark.parametrize("step", [0, 2, 4])
def test_what_is_shown_is_what_training_reads_and_the_groups_it_draws(config, step):
    shown = show(config, step, windows=6)
    batch = Batches(open_corpora(config.data), config.data, config.steps, config.seed)[step]
    stage = config.curriculum[0 if step < 2 else 1]
    order = draw_order(example_keys(config.seed, step, 6), jnp.asarray(batch["segments"]), stage.family, stage.group_size,
                       stage.given, "successor")  # fmt: skip
    assert (shown.order, len(shown.windows)) == (stage.name, 6)
    for row, window in enumerate(shown.windows):
        segments = batch["segments"][row]
        count = int((segments != 0).sum())
        assert window.padding == L - count
        np.testing.assert_array_equal(window.tokens, batch["tokens"][row][:count])
        np.testing.assert_array_equal(window.document, np.abs(segments[:count]))
        np.testing.assert_array_equal(window.context, segments[:count] < 0)
        predicted = np.zeros(L, bool)
        predicted[np.asarray(order.token_index[row])] = np.asarray(order.predicted[row])
        np.testing.assert_array_equal(np.array(window.group) > 0, predicted[:count])
        for document in set(window.document):
            groups = sorted({g for g, d in zip(window.group, window.document) if d == document and g})
            assert groups == list(range(1, 1 + len(groups))), "numbered from 1 in each document"


@pytest.mark.parametrize("token", [0, 3, 5])
def test_what_a_query_sees_is_what_the_brute_force_masks_say(config, token):
    for window in show(config, 3, windows=6, token=token).windows:
        # Groups of one for what is given, all before the groups that are predicted.
        groups = np.where(np.array(window.group) > 0, 1000 + np.array(window.group), np.arange(len(window.group)))
        _, query = brute_force.masks(groups, np.array(window.document))
        assert set(window.query.sees) == set(np.flatnonzero(query[token]))


def printed(shown) -> str:
    file = io.StringIO()
    print_shown(shown, Terminal(file=file, width=100))
    return file.getvalue()


def test_without_colour_the_print_still_tells_documents_groups_and_what_is_hidden(config):
    text = printed(show(config, 3, windows=6, token=5))
    documents = sum(max(window.document) for window in show(config, 3, windows=6).windows)
    assert text.count("‖") == documents + 1  # and the legend
    for sign in ("[", "]", "{", "}", "₁", "·", "▢", "random_4"):
        assert sign in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 5}, "step is 5; it must be from 0 to 4"),
        ({"windows": 7}, "windows is 7; it must be from 1 to data.batch 6"),
        ({"token": L}, "token is 40; it must be from 0 to 39"),
        ({"token": 39, "windows": 6}, r"token is 39, but row \d holds \d+ tokens before its padding"),
    ],
)
def test_a_place_that_is_not_there_is_refused(config, arguments, message):
    with pytest.raises(UserError, match=message):
        show(config, **arguments)


def test_the_bench_measures_every_part(config):
    """A part that takes no time at all was not measured: nothing here reaches a hundred million tokens a second."""
    measured = bench(config, steps=3)
    assert (measured.steps, measured.batch, measured.length, measured.order) == (3, 6, L, "random_4")
    assert set(measured.part_tokens_per_second) == set(PARTS)
    assert 0 < measured.tokens_per_second < 1e8
    assert all(0 < speed < 1e8 for speed in measured.part_tokens_per_second.values())
    assert 0 < measured.padding["corpus"] < 1
    with pytest.raises(UserError, match="steps is 0"):
        bench(dataclasses.replace(config), steps=0)
