"""`prepare`: counts, determinism, splits, and one sentence for everything that can be wrong with a source."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from a3jax.data import prepare as module
from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError


@pytest.fixture
def source(tmp_path):
    """A folder with 30 text files, and some that are not."""
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(30):
        text = "".join(rng.choice(list("abc é∀\n"), rng.integers(1, 200))) + f"{i}"
        (folder / ("deep/er" if i % 3 else "") / f"{i:02}.txt").write_text(text, encoding="utf-8")
    (folder / "blank.txt").write_text(" \n ")
    (folder / ".hidden.txt").write_text("hidden")
    return folder


def documents(out: Path, split: str) -> list[list[int]]:
    stream = TokenStream(out, read_manifest(out), split)
    edges = np.concatenate([*stream.documents(7), [len(stream)]]).astype(int)
    return [tokens.tolist() for tokens in np.split(stream.read(edges[:1], edges[-1:])[0], edges[1:-1])] if len(stream) else []


def texts_of(folder: Path) -> list[str]:
    return [p.read_text(encoding="utf-8") for p in sorted(folder.rglob("[0-9]*.txt"))]


def digests(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def test_every_document_is_written_once_with_its_start_and_end_and_counted_exactly(source, tmp_path):
    manifest = prepare([source], tmp_path / "out", "bytes", held_out=0.3, workers=1)
    texts = texts_of(source)
    expected = sorted([256, *load_codec("bytes").encode(text), 257] for text in texts)
    train, held_out = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "held_out")
    assert sorted(train + held_out) == expected
    assert all(len(ids) == len(text.encode()) for ids, text in ((load_codec("bytes").encode(t), t) for t in texts))
    for split, found in ((manifest.train, train), (manifest.held_out, held_out)):
        assert (split.documents, split.tokens) == (len(found), sum(map(len, found)))
        assert split.documents > 0
    assert manifest.characters == sum(map(len, texts))
    assert (manifest.vocab, manifest.dtype, manifest.passed_over) == (258, "uint16", {})
    assert (manifest.start_token, manifest.end_token) == (256, 257)
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.slow
def test_the_corpus_is_bit_equal_for_one_worker_and_two(source, tmp_path):
    prepare([source], tmp_path / "one", "bytes", held_out=0.3, workers=1)
    prepare([source], tmp_path / "two", "bytes", held_out=0.3, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(read_manifest(tmp_path / "one").train.shards) == 2


@pytest.mark.slow
def test_a_mistake_found_by_a_worker_reaches_the_user(source, tmp_path):
    (source / "zz.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UserError, match=r"zz\.jsonl:2 is not JSON"):
        prepare([source], tmp_path / "out", "bytes", workers=2)
    assert not list(tmp_path.glob("out*"))


def test_a_documents_split_depends_on_its_text_and_the_seed_alone(source, tmp_path):
    prepare([source], tmp_path / "a", "bytes", held_out=0.3, workers=1)
    kept = {tuple(ids) for ids in documents(tmp_path / "a", "held_out")}
    (source / "0new.txt").write_text("something new that moves every other file")
    for path in source.glob("0[0-9].txt"):
        path.rename(path.with_name("renamed" + path.name))
    prepare([source], tmp_path / "b", "bytes", held_out=0.3, workers=1)
    new = tuple(load_codec("bytes").document("something new that moves every other file"))
    assert {tuple(ids) for ids in documents(tmp_path / "b", "held_out")} - {new} == kept
    prepare([source], tmp_path / "c", "bytes", held_out=0.3, seed=1, workers=1)
    assert {tuple(ids) for ids in documents(tmp_path / "c", "held_out")} - {new} != kept


def test_the_held_out_fraction_is_kept_roughly():
    share = np.mean([module._held_out(f"text {i}", 0, 0.1) for i in range(5000)])
    assert abs(share - 0.1) < 0.02  # standard deviation 0.004
    assert not any(module._held_out(f"text {i}", 0, 0.0) for i in range(100))


def test_jsonl_gives_a_document_per_line_and_passes_over_empty_ones(tmp_path):
    file = tmp_path / "lines.jsonl"
    rows = [{"body": "one"}, {"body": "two\u2028 lines", "more": 1}, {"body": ""}, {"body": " \n"}, {"body": "ünï"}]
    file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    manifest = prepare([file], tmp_path / "out", "bytes", text_field="body", held_out=0.0, workers=1)
    assert manifest.train.documents == 3
    assert manifest.held_out.documents == 0
    expected = [load_codec("bytes").document(text) for text in ("one", "two\u2028 lines", "ünï")]
    assert documents(tmp_path / "out", "train") == expected


def test_files_and_folders_mix_and_patterns_choose(source, tmp_path):
    (source / "notes.md").write_text("notes")
    single = tmp_path / "single.txt"
    single.write_text("single")
    manifest = prepare([source, single], tmp_path / "out", "bytes", include=["*.md"], held_out=0.0, workers=1)
    assert manifest.train.documents == 2
    manifest = prepare([source], tmp_path / "rest", "bytes", exclude=["deep/*", "*.md"], held_out=0.0, workers=1)
    assert manifest.train.documents == len(list(source.glob("[0-9]*.txt")))


def test_files_that_are_not_text_are_counted_and_reported(source, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module.console, "print", said.append)
    (source / "picture.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    (source / "zz.bin").write_bytes(bytes(range(256)))
    manifest = prepare([source], tmp_path / "out", "bytes", held_out=0.0, workers=1)
    assert (manifest.train.documents, manifest.passed_over) == (30, {"not UTF-8 text": 2})
    assert said == ["files passed over because they are not UTF-8 text: 2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": \n', r"x\.jsonl:3 is not JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', r"x\.jsonl:2 has no text in field 'text'; name the right one with --text-field"),
        (b'{"text": "a"}\n{"text": 3}\n', r"x\.jsonl:2 has no text in field 'text'"),
        (b'["text"]\n', r"x\.jsonl:1 has no text in field 'text'"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"x\.jsonl is not UTF-8"),
        (b'{"text": "a"}\n{"text": "half \\ud83d"}\n', r"x\.jsonl:2 is not Unicode text in field 'text'"),
        (b"\n\n", r"x\.jsonl: no text for training was found; the corpus would be empty"),
    ],
)
def test_a_broken_jsonl_file_is_named_with_its_line(content, message, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare([file], tmp_path / "out", "bytes", held_out=0.0, workers=1)
    assert not list(tmp_path.glob("out*")), "nothing half-written is left"


def test_sources_that_hold_nothing_are_refused(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nowhere does not exist"):
        prepare([source, tmp_path / "nowhere"], out, "bytes", workers=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file to read in .*empty; check the path and --include"):
        prepare([tmp_path / "empty"], out, "bytes", workers=1)
    (tmp_path / "empty" / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match="no text for training was found"):
        prepare([tmp_path / "empty"], out, "bytes", workers=1)
    with pytest.raises(UserError, match=r"held-out is 1\.0"):
        prepare([source], out, "bytes", held_out=1.0, workers=1)
    assert not list(tmp_path.glob("out*"))


def test_an_existing_folder_is_not_touched(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists already; remove it or choose another name"):
        prepare([source], out, "bytes", workers=1)
    assert digests(out).keys() == {"mine"}


def test_files_are_dealt_into_shards_in_order_by_size(tmp_path, monkeypatch):
    files = []
    for i, size in enumerate([10, 50, 1, 1, 1, 90, 5]):
        files.append(tmp_path / f"{i}")
        files[-1].write_bytes(b"x" * size)
    assert [file for shard in module._deal(files) for file in shard] == files
    monkeypatch.setattr(module, "SHARD_BYTES", 50)
    assert [len(shard) for shard in module._deal(files)] == [2, 4, 1]
    assert module._deal(files[:1]) == [files[:1]]


def test_a_corpus_folder_without_manifest_or_with_a_wrong_one_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="is not a prepared corpus"):
        read_manifest(source)
    (source / "manifest.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match="was prepared by another version of a3jax"):
        read_manifest(source)
    (source / "manifest.json").write_text('{"version": 2, "train": {"documents": 1, "tokens": 1, "shards": []}}')
    with pytest.raises(UserError, match=r"manifest\.json: field 'held_out' is missing"):
        read_manifest(source)
