"""Batches of one's own: those of a corpus, brought by an iterator, train what the corpus trains; what is none is named."""

import dataclasses
import json
from pathlib import Path

import grain
import numpy as np
import pytest
from compared_runs import parameters

import a3jax
from a3jax.config import DataConfig
from a3jax.data.own import OwnBatches
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.errors import UserError
from a3jax.train.metrics import read

ROWS, SIZES = {2: np.arange(2)}, np.full(3, 2)


class Mine:
    """The batches of an experiment, as somebody else might bring them; `fails` at one of them."""

    def __init__(self, config, fails=None):
        self.batches = Batches(open_corpora(config.data), config.data, config.steps, config.seed)
        self.step, self.fails = 0, fails

    def __iter__(self):
        return self

    def __next__(self):
        if self.step == self.fails:
            raise ConnectionError("gone")
        self.step += 1
        return self.batches[self.step - 1]

    def get_state(self):
        return {"next": (self.step, b"\0")}

    def set_state(self, state):
        (self.step, nothing), self.fails = state["next"], None
        assert nothing == b"\0"


def test_a_run_that_breaks_off_goes_on_bit_for_bit_as_one_of_the_same_corpus(whole_run, experiment):
    config = experiment("own")
    with pytest.raises(ConnectionError):
        a3jax.fit(config, data=Mine(config, fails=5))
    saved = json.loads(next(config.run_folder.glob("checkpoints/3/data/metadata")).read_text())
    assert saved == {"own": repr({"next": (3, b"\0")}), "read": 3}
    with pytest.raises(UserError, match="step 3 does not say where to read on in these data; it is an older version's, or"):
        a3jax.fit(config)
    summary = a3jax.fit(config, data=Mine(config))
    for ours, theirs in zip(parameters(summary.run), parameters(str(whole_run)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    losses = [[row["loss"] for row in read(Path(run)) if "loss" in row] for run in (summary.run, whole_run)]
    assert losses[0] == losses[1]
    assert summary.nll


def test_without_a_corpus_ids_need_a_tokenizer(experiment):
    config = dataclasses.replace(experiment(), data=DataConfig(length=32, batch=4))
    with pytest.raises(UserError, match="nothing says of which tokenizer: give source"):
        a3jax.fit(config, data=iter_of(grain.MapDataset.range(4)))


def iter_of(dataset: grain.MapDataset) -> grain.DatasetIterator:
    return iter(dataset.to_iter_dataset())


def own(dataset: grain.MapDataset) -> OwnBatches:
    return OwnBatches(iter_of(dataset), 4, 9, ROWS, SIZES)


def test_an_iterator_of_grains_is_brought_to_where_it_was():
    windows = grain.MapDataset.range(6).seed(1).shuffle().map(lambda i: np.full(4, i, np.uint8)).batch(2)
    once, again = own(windows), own(windows)
    first = next(once)
    assert first["tokens"].dtype == np.int32
    assert (first["segments"] == 1).all()
    state = json.loads(json.dumps(once.get_state()))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], next(once)["tokens"])
    next(once)
    with pytest.raises(UserError, match="data ended after 3 batches, and the run has 3 steps"):
        next(once)


TOKENS = np.zeros((2, 4), int)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (TOKENS + 0.5, "batch 1 of data has tokens of type float64; they must be integers"),
        (TOKENS[:1], "batch 1 of data has tokens of shape 1 x 4; data.batch and data.length ask for 2 x 4"),
        (TOKENS + 9, "batch 1 of data has token id 9; the model has ids from 0 to 8"),
        (TOKENS - 1, "batch 1 of data has token id -1"),
        ({"tokens": TOKENS, "segments": TOKENS[0]}, "has segments of shape 4;"),
        ({"ids": TOKENS}, "has ids; it must have tokens, and may have segments"),
        ("words", "has tokens of type <U5"),
    ],
)
def test_what_is_no_batch_is_one_line(batch, message):
    class One(Mine):
        def __init__(self):
            self.step, self.fails, self.batches = 0, None, [batch]

    with pytest.raises(UserError, match=message) as error:
        next(OwnBatches(One(), 4, 9, ROWS, SIZES))
    assert "\n" not in str(error.value)


def test_given_tokens_are_refused_where_nothing_is_made_of_them():
    class One(Mine):
        def __init__(self):
            self.step, self.fails, self.batches = 0, None, [{"tokens": TOKENS, "segments": np.where(TOKENS < 3, -1, 1)}]

    with pytest.raises(UserError, match="batch 1 of data has given tokens, which objective fim would rearrange"):
        next(OwnBatches(One(), 4, 9, ROWS, SIZES, "which objective fim would rearrange"))
    next(OwnBatches(One(), 4, 9, ROWS, SIZES))


def test_what_has_no_state_or_one_that_cannot_be_kept_is_one_line():
    with pytest.raises(UserError, match="data is int; it must be an iterator of token arrays"):
        OwnBatches(3, 4, 9, ROWS, SIZES)
    with pytest.raises(UserError, match="data, list_iterator, has no get_state and set_state, by which a run goes on"):
        OwnBatches([TOKENS], 4, 9, ROWS, SIZES)

    class Odd(Mine):
        def __init__(self):
            pass

        def get_state(self):
            return {"next": np.int64(3)}

    with pytest.raises(UserError, match=r"data.get_state\(\) gives {'next': np.int64\(3\)}; a state must be of plain"):
        OwnBatches(Odd(), 4, 9, ROWS, SIZES).get_state()
