"""The format: tokens are read back by position as they were written, and whatever is not whole is named."""

import json
import pickle
import re

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.data import corpus as module
from a3jax.data.corpus import ShardWriter, TokenStream, is_written, read_manifest
from a3jax.errors import UserError


def stream_of(corpus) -> TokenStream:
    return TokenStream(corpus.folder, corpus.manifest, "train")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three shards, the second empty, of documents shorter and longer than a record; and all their tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RECORD_TOKENS", 50)
        patch.setattr(module, "_COARSE", 4)
        rng = np.random.default_rng(0)
        documents = [rng.integers(0, 60_000, size) for size in [1, 49, 50, 51, 500, 7, *rng.integers(1, 120, 30)]]
        corpus = corpora.write(tmp_path_factory.mktemp("corpora") / "c", [documents[:4], [], documents[4:]], dtype="uint16")
        yield stream_of(corpus), documents


def test_counts_and_the_beginnings_of_documents_are_those_written(written):
    stream, documents = written
    manifest = read_manifest(stream._folder)
    assert (manifest.train.documents, manifest.train.tokens) == (len(documents), sum(map(len, documents)))
    assert [shard.name for shard in manifest.train.shards] == ["train-00000.array_record", "train-00002.array_record"]
    expected = np.cumsum([0, *map(len, documents)])[:-1]
    for records in (1, 3, 1000):
        np.testing.assert_array_equal(np.concatenate(list(stream.documents(records))), expected)


@settings(max_examples=60)
@given(data=st.data())
def test_any_spans_are_read_as_they_were_written(written, data):
    stream, documents = written
    tokens = np.concatenate(documents)
    first = np.zeros(len(tokens), bool)
    first[np.cumsum([0, *map(len, documents)])[:-1]] = True
    begins = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=5))
    ends = [data.draw(st.integers(begin + 1, len(tokens))) for begin in begins]
    found_tokens, found_first, _ = stream.read(np.array(begins), np.array(ends))
    np.testing.assert_array_equal(found_tokens, np.concatenate([tokens[b:e] for b, e in zip(begins, ends)]))
    np.testing.assert_array_equal(found_first, np.concatenate([first[b:e] for b, e in zip(begins, ends)]))


def test_a_stream_reads_the_same_in_another_process(written):
    stream, _ = written
    begin, end = np.array([3]), np.array([300])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stream)).read(begin, end)[0], stream.read(begin, end)[0])


def test_only_the_records_that_a_span_touches_are_read(written, monkeypatch):
    stream, _ = written
    read = []
    monkeypatch.setattr(stream, "_read", lambda number, inside, old=stream._read: read.extend(inside) or old(number, inside))
    stream.read(np.array([151]), np.array([160]))  # inside the document of 500 tokens, whose records begin at 151
    assert read == [0]


def test_a_shard_counts_as_written_only_when_it_is_closed(tmp_path):
    with ShardWriter(tmp_path, "train", 0, "uint16") as writer:
        writer.write([1, 2, 3])
        assert not is_written(tmp_path, "train", 0)
    assert is_written(tmp_path, "train", 0)
    with pytest.raises(ValueError, match="invalid literal"), ShardWriter(tmp_path, "train", 1, "uint16") as writer:
        writer.write("not tokens")
    assert not is_written(tmp_path, "train", 1)
    with pytest.raises(ValueError, match="without tokens"), ShardWriter(tmp_path, "train", 2, "uint16") as writer:
        writer.write([])


@pytest.fixture
def small(tmp_path):
    """A corpus to damage, and its first shard."""
    rng = np.random.default_rng(0)
    corpus = corpora.write(tmp_path / "c", [[rng.integers(0, 60_000, 2000) for _ in range(20)] for _ in range(2)])
    return corpus, corpus.folder / "train-00000.array_record"


def test_a_missing_shard_is_named(small):
    corpus, shard = small
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} is missing; run a3jax prepare again"):
        stream_of(corpus)


@pytest.mark.parametrize("size", [0, 100, 65_536, -1])
def test_a_shard_that_was_cut_short_is_named(small, size):
    corpus, shard = small
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{shard} is damaged \([\d,]+ bytes, not [\d,]+\); run a3jax prepare again"):
        stream_of(corpus)


@pytest.mark.parametrize("place", [0.2, 0.5])
def test_a_flipped_byte_is_an_error_that_names_the_shard(small, place):
    corpus, shard = small
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= 1
    shard.write_bytes(content)
    stream = stream_of(corpus)
    with pytest.raises(UserError, match=rf"{shard}.* is damaged \(.+\); run a3jax prepare again"):
        stream.read(np.array([0]), np.array([len(stream)]))


def test_shards_that_changed_places_are_noticed_by_their_checksums(small):
    corpus, shard = small
    other = shard.with_name("train-00001.array_record")
    one, two = shard.read_bytes(), other.read_bytes()
    shard.write_bytes(two.ljust(len(one), b"\0")[: len(one)])
    stream = stream_of(corpus)
    with pytest.raises(UserError, match=rf"{shard}(, record 0)? is damaged"):
        stream.read(np.array([0]), np.array([10]))


@pytest.mark.parametrize("damage", ["gone", "another's", "cut short", "empty", "an archive", "a number", "of another kind"])
def test_an_index_that_is_not_the_shards_is_named(small, damage, tmp_path):
    corpus, _ = small
    index = corpus.folder / "train.index.npy"
    if damage == "gone":
        index.unlink()
    elif damage == "another's":
        other = corpora.write(tmp_path / "other", [corpora.numbered([5] * 40)])
        index.write_bytes((other.folder / index.name).read_bytes())
    elif damage == "cut short":
        index.write_bytes(index.read_bytes()[:-20])
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "an archive":
        with index.open("wb") as file:
            np.savez(file, np.zeros(40))
    elif damage == "a number":
        np.save(index, np.array(4))
    else:
        np.save(index, np.zeros(40))
    with pytest.raises(UserError, match=rf"{index} (is missing|is damaged|does not belong to the shards beside it)"):
        stream_of(corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("version"), "was prepared by another version of a3jax; run a3jax prepare again"),
        (lambda raw: raw.update(version=1), "was prepared by another version of a3jax"),
        (lambda raw: raw.update(more=1), r"manifest\.json: unknown field 'more'"),
        (lambda raw: raw.pop("dtype"), r"manifest\.json: field 'dtype' is missing"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(small, change, message):
    path = small[0].folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        read_manifest(small[0].folder)


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=re.escape("is not a prepared corpus (no manifest.json); write one with a3jax prepare")
    ):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("not JSON")
    with pytest.raises(UserError, match=r"manifest\.json is not JSON: .*; run a3jax prepare again"):
        read_manifest(tmp_path)
