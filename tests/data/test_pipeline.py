"""The stream: the same for any number of hosts, after any stop, and every token of a corpus once in each epoch."""

import dataclasses
import json

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.config import DataConfig, SourceConfig
from a3jax.data.corpus import TokenStream
from a3jax.data.pipeline import Batches, go_on_from, held_out_windows, open_corpora, training_batches
from a3jax.errors import UserError

L, BATCH = 32, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 documents of 1 to 120 tokens in three shards, every token another number; and 15 held out."""
    rng = np.random.default_rng(0)
    documents = corpora.numbered(rng.integers(1, 120, 60).tolist(), first=1)
    held_out = corpora.numbered(rng.integers(1, 60, 15).tolist(), first=30_000)
    return corpora.write(tmp_path_factory.mktemp("a") / "c", [documents[:20], documents[20:40], documents[40:]], [held_out])


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return corpora.write(tmp_path_factory.mktemp("b") / "d", [corpora.numbered([50] * 9, first=10_000)])


def data(batch=BATCH, **changes) -> DataConfig:
    return DataConfig(length=L, batch=batch, **changes)


def host_rows(batch, host, hosts):
    """Neighbouring rows, as many for each host as the batch allows."""
    return np.array_split(np.arange(batch), hosts)[host]


def batches(corpus, steps=200, seed=0, rows=None, **changes) -> Batches:
    settings = data(**changes)
    return Batches([corpus], settings, steps, seed, None if rows is None else {settings.batch: rows})


def take(iterator, count):
    return [{name: np.array(x) for name, x in next(iterator).items()} for _ in range(count)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for name in ("tokens", "segments"):
            np.testing.assert_array_equal(a[name], b[name])


def predicted(found) -> np.ndarray:
    """The tokens of batches that are there for their own sake, sorted."""
    return np.sort(np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in found]))


@settings(max_examples=12)
@given(
    batch=st.integers(3, 9),
    packing=st.sampled_from([{}, {"packing": "best_fit"}, {"packing": "best_fit", "overlap": 5}]),
    hosts=st.sampled_from([1, 2, 3, 8]),
    stops=st.sets(st.integers(1, 60), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_epoch_is_every_token_once_over_any_hosts_and_after_any_stops(corpus, batch, packing, hosts, stops, seed):
    """Hosts beyond the batch read nothing. Each stop throws the readers away and keeps the state as JSON."""
    windows = len(batches(corpus, seed=seed, batch=batch, **packing).packings[0])
    steps = 2 * windows // batch + 1

    def start():
        parts = [batches(corpus, steps, seed, host_rows(batch, host, hosts), batch=batch, **packing) for host in range(hosts)]
        return [iter(training_batches(part)) for part in parts]

    readers, found = start(), []
    for step in range(steps):
        if step in stops:
            states = [json.loads(json.dumps(reader.get_state())) for reader in readers]
            readers = start()
            for reader, state in zip(readers, states):
                go_on_from(reader, state, step)
        pieces = [next(reader) for reader in readers]
        found.append({name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})
    seen = np.zeros(corpus.manifest.train.tokens, int)
    for step, rows in enumerate(found, 1):
        assert rows["tokens"].shape == rows["segments"].shape == (batch, L)
        np.add.at(seen, rows["tokens"][rows["segments"] > 0] - 1, 1)
        epochs = step * batch // windows
        assert seen.min() == epochs
        assert seen.max() <= epochs + bool(step * batch % windows)
    alone = batches(corpus, steps, seed, batch=batch, **packing)
    assert_same(found, [alone[step] for step in range(steps)])


def test_two_runs_with_one_seed_are_the_same_and_another_seed_gives_others(corpus):
    once, again, other = (take(iter(training_batches(batches(corpus, seed=seed))), 12) for seed in (3, 3, 4))
    assert_same(once, again)
    assert all((a["tokens"] != b["tokens"]).any() for a, b in zip(once, other))


def test_windows_of_all_shards_are_shuffled_together(corpus):
    """The first batches hold tokens of every shard, which a shuffle by shard would not."""
    shard_of = np.repeat(np.arange(3), np.diff([0, *_shard_ends(corpus)]))
    early = predicted([batches(corpus, seed=1)[step] for step in range(3)])
    assert set(shard_of[early - 1]) == {0, 1, 2}


def _shard_ends(corpus) -> list[int]:
    index = np.load(corpus.folder / "train.index.npy")
    return [int(index["end"][last - 1]) for last in np.cumsum([shard.records for shard in corpus.manifest.train.shards])]


@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_a_host_reads_only_what_its_rows_need(corpus, hosts, monkeypatch):
    read = []
    original = TokenStream.read
    monkeypatch.setattr(TokenStream, "read", lambda self, b, e: read.append((e - b).sum()) or original(self, b, e))
    for host in range(hosts):
        batches(corpus, rows=host_rows(BATCH, host, hosts))[0]
    assert len(read) == min(hosts, BATCH)
    assert sum(read) == BATCH * L
    assert max(read) <= -(-BATCH // hosts) * L


@pytest.mark.long
def test_reading_resumes_bit_for_bit_with_worker_processes(corpus):
    def start():
        return iter(training_batches(batches(corpus, packing="best_fit", overlap=3), workers=2))

    iterator = start()
    before = take(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 4)
    fresh = start()
    go_on_from(fresh, state, 5)
    assert_same(take(fresh, 4), expected)
    alone = batches(corpus, packing="best_fit", overlap=3)
    assert_same([*before, *expected], [alone[step] for step in range(9)])


def test_a_state_of_another_reader_is_refused(corpus):
    with pytest.raises(UserError, match="checkpoint of step 7 does not say where to read on"):
        go_on_from(iter(training_batches(batches(corpus))), {"parent": {"next": 3}}, 7)


def test_a_mixture_reads_each_source_by_its_share_and_tells_so(corpus, other):
    settings = data(mixture=(SourceConfig("c", 3.0), SourceConfig("d", 1.0)))
    mixed = Batches([corpus, other], settings, 20, 0)
    rows = np.concatenate([mixed[step]["tokens"][:, 0] for step in range(20)])
    assert (rows >= 10_000).sum() == 40
    windows = -(-corpus.manifest.train.tokens // L), -(-450 // L)
    assert mixed.progress(20) == pytest.approx(
        {"epochs/c": 120 / windows[0], "epochs/d": 40 / windows[1], "share/c": 0.75, "share/d": 0.25}
    )
    assert set(batches(corpus).progress(1)) == {"epochs/c"}


def test_held_out_windows_hold_the_beginnings_of_documents_and_are_always_the_same(corpus):
    windows = held_out_windows([corpus], L, 1000)
    assert_same([windows], [held_out_windows([corpus], L, 1000)])
    stream = TokenStream(corpus.folder, corpus.manifest, "held_out")
    begins = np.concatenate(list(stream.documents(100)))
    ends = np.append(begins[1:], len(stream))
    expected = [np.arange(b, min(b + L, e)) + 30_000 for b, e in zip(begins, ends)]
    np.testing.assert_array_equal(predicted([windows]), np.concatenate(expected))
    for numbers, tokens in zip(windows["segments"], windows["tokens"]):
        for number in range(1, numbers.max() + 1):
            np.testing.assert_array_equal(np.diff(tokens[numbers == number]), 1)
    for name, window in held_out_windows([corpus], L, 3).items():
        np.testing.assert_array_equal(window, windows[name][:3])


def test_held_out_windows_come_from_all_sources_that_have_some(corpus, other):
    assert len(held_out_windows([other], L, 4)["tokens"]) == 0
    both = held_out_windows([other, corpus, corpus], L, 4)
    assert_same([both], [{n: np.tile(x, (2, 1)) for n, x in held_out_windows([corpus], L, 2).items()}])
    few = held_out_windows([corpus, corpus], L, 1)
    assert_same([few], [held_out_windows([corpus], L, 1)])


def test_corpora_are_named_by_their_folders_or_in_full_where_these_are_alike(corpus, tmp_path):
    twin = corpora.write(tmp_path / corpus.name, [corpora.numbered([3])])
    alone = open_corpora(DataConfig(str(corpus.folder)))
    assert [c.name for c in alone] == ["c"]
    both = open_corpora(DataConfig(mixture=tuple(SourceConfig(str(c.folder)) for c in (corpus, twin))))
    assert [c.name for c in both] == [str(corpus.folder), str(twin.folder)]
    missing = dataclasses.replace(DataConfig(), mixture=(SourceConfig(str(corpus.folder)), SourceConfig("nowhere")))
    with pytest.raises(UserError, match="nowhere is not a prepared corpus"):
        open_corpora(missing)
