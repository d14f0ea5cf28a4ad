"""`prepare`: counts, determinism, splits, and one sentence for everything that can be wrong with a source."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from corpora import digests

from a3jax.data import prepare as module
from a3jax.data import shards
from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.filters import Filters
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.sources.interface import Part
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError


def documents(out: Path, split: str) -> list[list[int]]:
    stream = TokenStream(out, read_manifest(out), split)
    edges = np.concatenate([*stream.documents(7), [len(stream)]]).astype(int)
    return [tokens.tolist() for tokens in np.split(stream.read(edges[:1], edges[-1:])[0], edges[1:-1])] if len(stream) else []


def texts_of(folder: Path) -> list[str]:
    return [p.read_text(encoding="utf-8") for p in sorted(folder.rglob("[0-9]*.txt"))]


def test_every_document_is_written_once_with_its_start_and_end_and_counted_exactly(source, tmp_path):
    manifest = prepare([source], tmp_path / "out", Preparation("bytes", held_out=0.3, workers=1))
    texts = texts_of(source)
    expected = sorted([256, *load_codec("bytes").encode(text), 257] for text in texts)
    train, held_out = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "held_out")
    assert sorted(train + held_out) == expected
    assert all(len(ids) == len(text.encode()) for ids, text in ((load_codec("bytes").encode(t), t) for t in texts))
    for split, found in ((manifest.train, train), (manifest.held_out, held_out)):
        assert (split.documents, split.tokens) == (len(found), sum(map(len, found)))
        assert split.documents > 0
    assert manifest.characters == sum(map(len, texts))
    assert (manifest.vocab, manifest.dtype, manifest.passed_over) == (258, "uint16", {"empty": 1})
    assert (manifest.start_token, manifest.end_token) == (256, 257)
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.slow
def test_the_corpus_is_bit_equal_for_one_worker_and_more(source, tmp_path):
    (source / "more.jsonl").write_text("".join(json.dumps({"text": f"line {i % 40}"}) + "\n" for i in range(100)))
    for name, workers in {"one": 1, "two": 2, "five": 5}.items():
        manifest = prepare([source], tmp_path / name, Preparation("bytes", held_out=0.3, workers=workers, deduplicate=True))
        assert manifest.train.documents + manifest.held_out.documents == 70
        assert manifest.passed_over == {"duplicate": 60, "empty": 1}
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "five")
    assert len(read_manifest(tmp_path / "one").train.shards) > 1


@pytest.mark.slow
def test_a_mistake_found_by_a_worker_reaches_the_user_and_ends_the_others(source, tmp_path):
    (source / "zz.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UserError, match=r"zz\.jsonl:2 is not JSON") as caught:
        prepare([source], tmp_path / "out", Preparation("bytes", workers=2))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "out").exists()


def test_a_documents_split_depends_on_its_text_and_the_seed_alone(source, tmp_path):
    prepare([source], tmp_path / "a", Preparation("bytes", held_out=0.3, workers=1))
    kept = {tuple(ids) for ids in documents(tmp_path / "a", "held_out")}
    (source / "0new.txt").write_text("something new that moves every other file")
    for path in source.glob("0[0-9].txt"):
        path.rename(path.with_name("renamed" + path.name))
    prepare([source], tmp_path / "b", Preparation("bytes", held_out=0.3, workers=1))
    new = tuple(load_codec("bytes").document("something new that moves every other file"))
    assert {tuple(ids) for ids in documents(tmp_path / "b", "held_out")} - {new} == kept
    prepare([source], tmp_path / "c", Preparation("bytes", held_out=0.3, seed=1, workers=1))
    assert {tuple(ids) for ids in documents(tmp_path / "c", "held_out")} - {new} != kept


def test_the_held_out_fraction_is_kept_roughly():
    share = np.mean([shards.held_out(i.to_bytes(16, "big"), 0, 0.1) for i in range(5000)])
    assert abs(share - 0.1) < 0.02  # standard deviation 0.004
    assert not any(shards.held_out(i.to_bytes(16, "big"), 0, 0.0) for i in range(100))


def test_jsonl_gives_a_document_per_line_and_passes_over_empty_ones(tmp_path):
    file = tmp_path / "lines.jsonl"
    rows = [{"body": "one"}, {"body": "two\u2028 lines", "more": 1}, {"body": ""}, {"body": " \n"}, {"body": "ünï"}]
    file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    manifest = prepare([file], tmp_path / "out", Preparation("bytes", column="body", held_out=0.0, workers=1))
    assert manifest.train.documents == 3
    assert manifest.held_out.documents == 0
    expected = [load_codec("bytes").document(text) for text in ("one", "two\u2028 lines", "ünï")]
    assert documents(tmp_path / "out", "train") == expected


def test_files_and_folders_mix_and_patterns_choose(source, tmp_path):
    (source / "notes.md").write_text("notes")
    single = tmp_path / "single.txt"
    single.write_text("single")
    manifest = prepare([source, single], tmp_path / "out", Preparation("bytes", include=["*.md"], held_out=0.0, workers=1))
    assert manifest.train.documents == 2
    manifest = prepare([source], tmp_path / "rest", Preparation("bytes", exclude=["deep/*", "*.md"], held_out=0.0, workers=1))
    assert manifest.train.documents == len(list(source.glob("[0-9]*.txt")))


def test_files_that_are_not_text_are_counted_and_reported(source, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module.console, "print", said.append)
    (source / "picture.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    (source / "zz.bin").write_bytes(bytes(range(256)))
    manifest = prepare([source], tmp_path / "out", Preparation("bytes", held_out=0.0, workers=1))
    assert (manifest.train.documents, manifest.passed_over) == (30, {"empty": 1, "not UTF-8 text": 2})
    assert said == ["passed over: empty 1, not UTF-8 text 2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": \n', r"x\.jsonl:3 is not JSON: .*; mend that, or pass over .* --on-error skip"),
        (b'{"text": "a"}\n{"body": "b"}\n', r"x\.jsonl:2 has no 'text'; it has body: name one with --column"),
        (
            b'{"text": "a"}\n{"text": [2, 258]}\n',
            r"x\.jsonl:2 has the token id 258, and the tokenizer ids from 0 to 257",
        ),
        (b'{"text": "a"}\n{"text": [-1]}\n', r"x\.jsonl:2 has the token id -1"),
        (b"", r"x\.jsonl: no text for training was found; the corpus would be empty"),
        (b"\n\n", r"x\.jsonl: no text for training was found; the corpus would be empty"),
        (b'{"text": " "}', r"x\.jsonl: no text for training was found \(passed over: empty 1\); the corpus would be empty"),
    ],
)
def test_a_broken_document_ends_it_and_is_named(content, message, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare([file], tmp_path / "out", Preparation("bytes", held_out=0.0, workers=1))
    assert not list(tmp_path.glob("out*")), "nothing half-written is left"


def test_broken_documents_are_passed_over_and_counted_where_the_user_asks(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        b'{"text": "a"}\nbad\n{"body": 1}\n{"text": "\xff"}\n{"text": [999]}\n\n{"text": ""}\n{"text": "b"}'
    )
    (tmp_path / "y.parquet").write_bytes(b"PAR1 and no more")
    manifest = prepare([tmp_path], tmp_path / "out", Preparation("bytes", held_out=0.0, workers=1, on_error="skip"))
    assert documents(tmp_path / "out", "train") == [load_codec("bytes").document(text) for text in "ab"]
    counted = {"damaged file": 1, "empty": 1, "foreign token ids": 1, "no text": 1, "not JSON": 1, "not UTF-8 text": 1}
    assert manifest.passed_over == counted
    with pytest.raises(UserError, match=r"y\.parquet cannot be read"):
        prepare([tmp_path], tmp_path / "again", Preparation("bytes", workers=1))


def test_token_ids_are_written_as_they_are(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"ids": [5, 6]}\n{"ids": []}\n{"ids": [257]}\n{"ids": [5, 6]}')
    manifest = prepare(
        [tmp_path], tmp_path / "out", Preparation("bytes", column="ids", held_out=0.0, workers=1, deduplicate=True)
    )
    assert documents(tmp_path / "out", "train") == [[5, 6], [257]]
    assert manifest.passed_over == {"duplicate": 1, "empty": 1}
    assert manifest.characters == 0


def test_of_identical_documents_the_first_is_kept_wherever_they_are(source, tmp_path):
    texts = texts_of(source)
    for i, text in enumerate(texts[::2]):
        (source / f"again{i}.txt").write_text(text, encoding="utf-8")
    (source / "zz.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "new", "new"]))
    manifest = prepare([source], tmp_path / "out", Preparation("bytes", held_out=0.0, workers=1, deduplicate=True))
    assert sorted(documents(tmp_path / "out", "train")) == sorted(map(load_codec("bytes").document, [*texts, "new"]))
    assert manifest.passed_over == {"duplicate": 15 + 30 + 1, "empty": 1}
    assert not list((tmp_path / "out").glob("*.d*")), "nothing of the work is left"


def test_documents_outside_the_limits_are_passed_over_by_reason(tmp_path):
    texts = ["short", "two words", "many words that make a longer document", "x" * 50, "ééééé ééééé"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    limits = Filters(min_words=2, max_characters=30, max_tokens=15)
    manifest = prepare([tmp_path], tmp_path / "out", Preparation("bytes", held_out=0.0, filters=limits, workers=1))
    assert documents(tmp_path / "out", "train") == [load_codec("bytes").document("two words")]
    assert manifest.passed_over == {"characters above 30": 2, "tokens above 15": 1, "words below 2": 1}
    assert manifest.settings["min_words"] == "2"


def test_sources_that_hold_nothing_are_refused(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nowhere does not exist"):
        prepare([source, tmp_path / "nowhere"], out, Preparation("bytes", workers=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file to read in .*empty; check the path and --include"):
        prepare([tmp_path / "empty"], out, Preparation("bytes", workers=1))
    (tmp_path / "empty" / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match="no text for training was found"):
        prepare([tmp_path / "empty"], out, Preparation("bytes", workers=1))
    with pytest.raises(UserError, match=r"held-out is 1\.0"):
        prepare([source], out, Preparation("bytes", held_out=1.0, workers=1))
    assert not list(tmp_path.glob("out*"))


def test_an_existing_folder_is_not_touched(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists already; remove it or choose another name"):
        prepare([source], out, Preparation("bytes", workers=1))
    assert digests(out).keys() == {"mine"}


def test_parts_are_dealt_into_shards_in_order_by_size(monkeypatch):
    work = [(None, Part(i, i + 1, size)) for i, size in enumerate([10, 50, 1, 1, 1, 90, 5])]
    monkeypatch.setattr(module, "SMALLEST_SHARD", 50)
    assert [part for shard in module._deal(work) for part in shard] == work
    assert [len(shard) for shard in module._deal(work)] == [2, 4, 1]
    assert module._deal(work[:1]) == [work[:1]]
    monkeypatch.undo()
    assert len(module._deal(work)) == 2
    assert [len(shard) for shard in module._deal([(None, Part(0, 1, 9)), (None, Part(0, 1, 9))])] == [1, 1]
    assert [len(shard) for shard in module._deal([(None, Part(0, 1, 0))] * 9)] == [9]
    many = [(None, Part(i, i + 1, 2**24)) for i in range(2000)]
    assert [len(shard) for shard in module._deal(many[:128])] == [2] * 64
    assert {len(shard) for shard in module._deal(many)} == {4}


def test_a_corpus_folder_without_manifest_or_with_a_wrong_one_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="is not a prepared corpus"):
        read_manifest(source)
    (source / "manifest.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match="was prepared by another version of a3jax"):
        read_manifest(source)
    (source / "manifest.json").write_text('{"version": 2, "train": {"documents": 1, "tokens": 1, "shards": []}}')
    with pytest.raises(UserError, match=r"manifest\.json: field 'held_out' is missing"):
        read_manifest(source)
