"""Packed windows: nothing lost, nothing mixed, and a state that resumes bit for bit."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from a3jax.data import pipeline
from a3jax.data.corpus import read_manifest
from a3jax.data.pipeline import go_on_from, held_out_windows, training_batches
from a3jax.data.prepare import prepare
from a3jax.errors import UserError

L, BATCH = 32, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 documents of 3 to 120 tokens, each of one byte of its own, so that every token tells its document."""
    folder = tmp_path_factory.mktemp("corpus")
    file = folder / "documents.jsonl"
    lengths = np.random.default_rng(0).integers(1, 119, 60)
    file.write_text("\n".join(json.dumps({"text": chr(33 + i) * int(n)}) for i, n in enumerate(lengths)))
    other = folder / "more.jsonl"
    other.write_text(json.dumps({"text": "~" * 50}))
    out = folder / "out"
    return out, prepare([file, other], out, "bytes", held_out=0.2, workers=1)


@pytest.fixture
def short_shuffle(monkeypatch):
    """A shuffle among few windows, so that a short test crosses it several times."""
    monkeypatch.setattr(pipeline, "SHUFFLED_WINDOWS", 7)


def batches(corpus, seed=0, length=L, batch=BATCH, workers=0):
    return training_batches(*corpus, length, batch, seed, workers)


def take(iterator, count):
    return [{name: np.array(x) for name, x in next(iterator).items()} for _ in range(count)]


def assert_same(first, second):
    for a, b in itertools.zip_longest(first, second):
        for name in ("tokens", "segments"):
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_are_int32_and_full(corpus):
    for batch in take(iter(batches(corpus)), 5):
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: ((BATCH, L), np.dtype("int32")) for name in ("tokens", "segments")
        }
        assert (batch["segments"][:, 0] == 1).all()
        assert np.isin(np.diff(batch["segments"], axis=1), [0, 1]).all()


def test_segments_are_documents_and_tokens_never_cross_between_them(corpus):
    """A new segment begins exactly where a document's start token stands, or at the window's first token."""
    for batch in take(iter(batches(corpus)), 20):
        for tokens, segments in zip(batch["tokens"], batch["segments"]):
            starts = np.flatnonzero(np.diff(segments, prepend=0))
            np.testing.assert_array_equal(starts, np.union1d([0], np.flatnonzero(tokens == 256)))
            for number in set(segments):
                words = set(tokens[segments == number]) - {256, 257}
                assert len(words) <= 1, "one document's tokens"


def test_an_epoch_holds_every_token_of_every_document_exactly_once(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "SHUFFLED_WINDOWS", 1)  # windows in the order in which they are packed
    manifest = corpus[1]
    count = manifest.train.tokens
    stream = np.concatenate([b["tokens"][0] for b in take(iter(batches(corpus, batch=1)), 3 * count // L + 1)])
    epochs = [stream[i * count : (i + 1) * count] for i in range(3)]
    for epoch in epochs:
        starts = np.flatnonzero(epoch == 256)
        assert starts[0] == 0
        assert len(starts) == manifest.train.documents
        np.testing.assert_array_equal(np.sort(epoch), np.sort(epochs[0]))
        for document in np.split(epoch, starts[1:]):
            assert document[-1] == 257
            assert len(set(document[1:-1])) == 1
    assert (epochs[0] != epochs[1]).any(), "every epoch has an order of its own"


def test_shuffling_windows_loses_and_repeats_none(corpus, short_shuffle):
    shuffled = np.concatenate([b["tokens"] for b in take(iter(batches(corpus, batch=1)), 70)])
    pipeline.SHUFFLED_WINDOWS = 1
    plain = np.concatenate([b["tokens"] for b in take(iter(batches(corpus, batch=1)), 70)])
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, plain))
    assert (shuffled != plain).any()


def test_the_same_seed_gives_the_same_batches_and_another_gives_others(corpus):
    once, again, other = (take(iter(batches(corpus, seed)), 6) for seed in (3, 3, 4))
    assert_same(once, again)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(once, other))


@pytest.mark.parametrize("position", [0, 1, 6, 7, 23])
def test_reading_resumes_bit_for_bit_from_the_state_as_json(corpus, short_shuffle, position):
    """Positions before, on and after the edges of the shuffle, within a document, and in a later epoch."""
    iterator = iter(batches(corpus))
    take(iterator, position)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 9)
    fresh = iter(batches(corpus))
    take(fresh, 3)  # a state replaces whatever was read before
    go_on_from(fresh, state)
    assert_same(take(fresh, 9), expected)


def test_the_state_is_small_and_reading_it_disturbs_nothing(corpus, short_shuffle):
    watched, plain = iter(batches(corpus)), iter(batches(corpus))
    for _ in range(12):
        assert len(json.dumps(watched.get_state())) < 500
        assert_same(take(watched, 1), take(plain, 1))


@pytest.mark.slow
def test_reading_resumes_bit_for_bit_with_a_worker_process(corpus):
    iterator = iter(batches(corpus, workers=1))
    take(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 4)
    fresh = iter(batches(corpus, workers=1))
    go_on_from(fresh, state)
    assert_same(take(fresh, 4), expected)
    assert_same(take(iter(batches(corpus)), 9)[5:], expected)  # one worker reads what the process itself would


def test_held_out_windows_hold_the_beginnings_of_documents_and_are_always_the_same(corpus):
    windows = held_out_windows(*corpus, L, 1000)
    assert_same([windows], [held_out_windows(*corpus, L, 1000)])
    documents = corpus[1].held_out.documents
    assert (windows["tokens"] == 256).sum() == documents
    for name, window in held_out_windows(*corpus, L, 3).items():
        np.testing.assert_array_equal(window, windows[name][:3])
    short = held_out_windows(*corpus, 8, 1000)
    assert (short["tokens"] == 256).sum() == documents
    assert (short["segments"] > 0).sum() <= 8 * documents


def test_a_corpus_without_held_out_documents_gives_no_windows(corpus):
    folder, manifest = corpus
    nothing = dataclasses.replace(manifest.held_out, documents=0, tokens=0, shards=())
    windows = held_out_windows(folder, dataclasses.replace(manifest, held_out=nothing), L, 10)
    assert {name: x.shape for name, x in windows.items()} == {"tokens": (0, L), "segments": (0, L)}


@pytest.fixture
def copy(corpus, tmp_path):
    """A corpus to damage, and its first shard."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in corpus[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = read_manifest(folder)
    return folder, manifest, folder / manifest.train.shards[0].name


def test_a_missing_shard_is_named(copy):
    folder, manifest, shard = copy
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} is missing; run a3jax prepare again"):
        training_batches(folder, manifest, L, BATCH, 0)


@pytest.mark.parametrize("size", [0, 100, 65_536, 100_000, -1])
def test_a_shard_that_was_cut_short_is_named(copy, size):
    folder, manifest, shard = copy
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{shard} is damaged \(.+\); run a3jax prepare again"):
        training_batches(folder, manifest, L, BATCH, 0)
