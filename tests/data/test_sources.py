"""Sources: every kind gives the documents that were written, and names what is wrong with them by file and place."""

import gzip
import itertools
import json

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.data.sources import huggingface, interface
from a3jax.data.sources.files import File
from a3jax.data.sources.interface import Fault, Tokens, document, ranges
from a3jax.data.sources.jsonl import Jsonl
from a3jax.data.sources.opening import Reading, open_source
from a3jax.data.sources.rows import TextRow
from a3jax.errors import UserError

TEXTS = [f"document {i} with ünïcode \u2028 and\nlines" * (i % 5 + 1) for i in range(700)]


def read(named, **options):
    """All documents of all parts, as the reader of a corpus would have them."""
    found = []
    for source in open_source(str(named), Reading(**options)):
        parts = source.parts()
        found += [parts] if isinstance(parts, Fault) else [d for part in parts for d in source.documents(part)]
    return found


def messages(found):
    return [fault.message for fault in found if isinstance(fault, Fault)]


def lines_of(texts, column="text"):
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()


def as_text(path, content):
    path.write_bytes(content)
    return path


def as_parquet(path, texts=TEXTS, rows=50, **columns):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts, **columns}), path, row_group_size=rows)
    return path


def as_array_record(path, documents, dtype="<u2"):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for ids in documents:
        writer.write(np.asarray(ids, dtype).tobytes())
    writer.close()
    return path


def test_text_files_are_one_document_each_whatever_their_line_ends_and_mark(tmp_path):
    assert read(as_text(tmp_path / "a.txt", "\ufeffé\r\nb\rc\n".encode())) == ["é\nb\nc\n"]
    assert read(as_text(tmp_path / "a.txt.gz", gzip.compress("é".encode()))) == ["é"]
    assert read(as_text(tmp_path / "a.py.zst", zstandard.compress(b"x"))) == ["x"]


def test_bytes_that_are_no_text_are_expected_in_text_files(tmp_path):
    (fault,) = read(as_text(tmp_path / "a.png", b"ab\xff"))
    assert (fault.reason, fault.expected) == ("not UTF-8 text", True)
    assert fault.message == f"{tmp_path}/a.png is not UTF-8: invalid start byte at byte 2"


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("x.jsonl", bytes),
        ("x.ndjson", bytes),
        ("x.jsonl.gz", gzip.compress),
        ("x.json.gz", lambda b: gzip.compress(b[: len(b) // 2]) + gzip.compress(b[len(b) // 2 :])),
        ("x.jsonl.zst", zstandard.compress),
        ("x.jsonl.zst", lambda b: b"".join(zstandard.compress(b[i : i + 999]) for i in range(0, len(b), 999))),
    ],
)
def test_jsonl_gives_a_document_a_line_however_it_is_compressed(name, pack, tmp_path):
    assert read(as_text(tmp_path / name, pack(lines_of(TEXTS, "body"))), column="body") == TEXTS


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=12),
    size=st.integers(1, 60),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_every_line_belongs_to_exactly_one_part_wherever_parts_are_cut(texts, size, end, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    path.write_bytes(lines_of(texts).rstrip(b"\n") + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interface, "PART_BYTES", 16 * size)
        source = Jsonl(File(str(path), path.stat().st_size, ""), TextRow("text"))
        parts = source.parts()
        assert [d for part in parts for d in source.documents(part)] == texts
        assert sum(part.bytes for part in parts) == path.stat().st_size


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"text": ', "not JSON", "is not JSON: Expecting value"),
        (b'["text"]', "not JSON", "is not a JSON object"),
        (b'{"body": "b", "id": 3}', "no text", "has no 'text'; it has body, id: name one with --column"),
        (b'{"text": 3}', "no text", "has the number 3 in 'text', neither text nor token ids"),
        (b'{"text": {"a": 1}}', "no text", "has an object in 'text'"),
        (b'{"text": ["a"]}', "no text", "has a list in 'text'"),
        (b'{"text": [[1], [2, 3]]}', "no text", "has a list in 'text'"),
        (b'{"text": "\xff"}', "not UTF-8 text", "is not UTF-8 text: byte 0xff after byte 10"),
        (b'{"text": "half \\ud83d"}', "not Unicode text", "is not Unicode text in 'text'"),
    ],
)
@pytest.mark.parametrize("size", [7, 10**6])
def test_a_broken_line_is_named_by_its_number_and_the_others_are_read(line, reason, message, size, tmp_path, monkeypatch):
    monkeypatch.setattr(interface, "PART_BYTES", 16 * size)
    found = read(as_text(tmp_path / "x.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}'))
    assert [found[0], found[2]] == ["a", "b"]
    assert found[1].reason == reason
    assert found[1].message.startswith(f"{tmp_path}/x.jsonl:3 {message}")
    assert not found[1].expected


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_compressed_lines_that_are_cut_short_or_damaged_are_read_up_to_there(suffix, pack, tmp_path):
    whole = pack(lines_of(TEXTS[:50] + [str(np.random.default_rng(0).bytes(200_000))]))
    found = read(as_text(tmp_path / f"x.jsonl.{suffix}", whole[: len(whole) // 2]))
    assert found[:-1] == TEXTS[: len(found) - 1]
    assert "x.jsonl" in found[-1].message
    assert found[-1].reason == "damaged file"
    (fault,) = read(as_text(tmp_path / f"y.jsonl.{suffix}", b"not compressed at all"))
    assert f"y.jsonl.{suffix} cannot be read after line 0" in fault.message


def test_token_ids_and_nothing_are_documents_too():
    found = document([3, 1, 2], "here", "ids")
    assert isinstance(found, Tokens)
    assert (found.ids.tolist(), found.where) == ([3, 1, 2], "here")
    assert document([], "here", "ids") == document(None, "here", "ids") == ""
    assert document(b"\xc3\xa9", "here", "text") == "é"
    for value in ([1.5], [[1, 2]], True, 2.5, ["a"], {}):
        assert isinstance(document(value, "here", "ids"), Fault)


def test_parquet_gives_a_column_row_group_by_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(interface, "PART_BYTES", 10_000)
    path = as_parquet(tmp_path / "x.parquet", kind=pa.array(["a", "b"] * 350).dictionary_encode())
    (source,) = open_source(str(path), Reading())
    parts = source.parts()
    assert len(parts) > 3
    assert [(a.end, b.end - b.begin > 0) for a, b in itertools.pairwise(parts)] == [(b.begin, True) for b in parts[1:]]
    assert [d for part in parts for d in source.documents(part)] == TEXTS
    assert read(path, column="kind") == ["a", "b"] * 350


def test_parquet_rows_that_are_not_utf8_or_empty_are_told_one_by_one(tmp_path):
    raw = pa.array([b"good", b"bad \xff", None, b"", b"fine"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(5, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pq.write_table(pa.table({"text": text, "ids": [[1], [2, 3], [], None, [4]]}), tmp_path / "x.parquet", row_group_size=3)
    found = read(tmp_path / "x.parquet")
    assert [found[0], *found[2:]] == ["good", "", "", "fine"]
    assert found[1].message == f"{tmp_path}/x.parquet, row 1 is not UTF-8: invalid start byte at byte 4"
    ids = read(tmp_path / "x.parquet", column="ids")
    assert [d.ids.tolist() if isinstance(d, Tokens) else d for d in ids] == [[1], [2, 3], "", "", [4]]
    assert ids[4].where.endswith("x.parquet, row 4")


def test_a_truncated_or_damaged_parquet_file_and_a_wrong_column_are_named(tmp_path):
    whole = as_parquet(tmp_path / "x.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (fault,) = read(as_text(tmp_path / "cut.parquet", whole[:cut]))
        assert fault.message.startswith(f"{tmp_path}/cut.parquet cannot be read: ")
        assert fault.reason == "damaged file"
    begin = pq.read_metadata(tmp_path / "x.parquet").row_group(7).column(1).data_page_offset
    found = read(as_text(tmp_path / "bad.parquet", whole[:begin] + b"\x77" * 500 + whole[begin + 500 :]))
    assert [d for d in found if isinstance(d, str)] == TEXTS[:350] + TEXTS[400:], "the other row groups are read"
    assert "bad.parquet, row 350 cannot be read: " in found[350].message
    with pytest.raises(UserError, match=r"x\.parquet has no 'txt'; it has id, text: name one with --column"):
        read(tmp_path / "x.parquet", column="txt")


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_array_record_gives_token_ids_a_record(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(interface, "PART_BYTES", 30_000)
    documents = [np.arange(i % 40) + i for i in range(600)]
    path = as_array_record(tmp_path / "x.array_record-00000-of-00001", documents, dtype)
    found = read(path, token_dtype=dtype)
    assert [d.ids.tolist() if isinstance(d, Tokens) else [] for d in found] == [d.tolist() for d in documents]
    assert found[599].where.endswith(", record 599")


def test_array_record_that_is_cut_short_damaged_or_of_another_type_is_named(tmp_path):
    whole = as_array_record(tmp_path / "x.array_record", [np.arange(n + 1) for n in range(500)]).read_bytes()
    for cut in (0, 1000, len(whole) // 2, len(whole) - 10):
        (fault,) = read(as_text(tmp_path / "cut.array_record", whole[:cut]))
        assert fault.message.startswith(f"{tmp_path}/cut.array_record cannot be read: ")
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    found = read(as_text(tmp_path / "bad.array_record", bytes(flipped)))
    assert "bad.array_record, record " in found[-1].message
    assert found[-1].reason == "damaged file"
    odd = read(tmp_path / "x.array_record", token_dtype="uint32")
    assert "record 0 is 2 bytes, no multiple of 4: name its type with --token-dtype" in odd[0].message


@pytest.mark.parametrize("kind", ["data set", "splits", "selection", "files"])
def test_folders_of_the_datasets_library_and_its_names_are_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(interface, "PART_BYTES", 10_000)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(700))})
    folder, named, expected = tmp_path / "folder", str(tmp_path / "folder"), TEXTS
    if kind == "files":
        folder.mkdir()
        as_text(folder / "a.jsonl", lines_of(TEXTS[:400]))
        as_text(folder / "b.jsonl", lines_of(TEXTS[400:]))
        named = f"hf:{folder}"
    elif kind == "splits":
        datasets.DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(folder)
    elif kind == "selection":
        chosen = rows.select(range(699, 0, -2))
        chosen.save_to_disk(folder)
        expected = TEXTS[699:0:-2]
    else:
        rows.save_to_disk(folder)
    assert read(named) == expected
    (source,) = open_source(named, Reading())
    assert len(source.parts()) > 3
    with pytest.raises(UserError, match=r"folder has no 'txt'; it has text, id: name one with --column|it has id, text"):
        read(named, column="txt")


def test_what_is_wrong_with_a_data_set_of_the_datasets_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "folder")
    with pytest.raises(UserError, match=r"folder has no split 'train'; it has a, b: choose one with --split"):
        read(tmp_path / "folder")
    assert read(tmp_path / "folder", split="b") == TEXTS
    (arrow,) = (tmp_path / "folder" / "a").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:5000])
    huggingface._open.cache_clear()
    with pytest.raises(UserError, match=r"folder cannot be opened: .+") as caught:
        read(tmp_path / "folder", split="a")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="hf:nobody/nothing cannot be opened: Couldn't reach"):
        read("hf:nobody/nothing")


def test_folders_mix_all_kinds_in_order_of_their_names_and_patterns_choose(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    as_text(tmp_path / "b" / "x.jsonl", lines_of(["in b"]))
    as_text(tmp_path / "b" / ".git" / "x.txt", b"hidden")
    as_text(tmp_path / ".hidden", b"hidden")
    as_text(tmp_path / "b.txt", b"after b/")
    as_parquet(tmp_path / "a.parquet", ["in a"])
    as_array_record(tmp_path / "c.array_record", [[1, 2]])
    (tmp_path / "d.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "e").symlink_to(tmp_path / "b")
    (tmp_path / "f.txt").symlink_to(tmp_path / "nowhere")
    found = read(tmp_path)
    assert [d if isinstance(d, str) else d.ids.tolist() for d in found] == ["in a", "in b", "after b/", [1, 2], "after b/"]
    assert read(tmp_path, include=("*.txt", "b/*"), exclude=("d*",)) == ["in b", "after b/"]


def test_buckets_are_read_like_folders():
    system = fsspec.filesystem("memory")
    for name, content in {
        "x.jsonl": lines_of(TEXTS),
        "y.txt": b"y",
        "z.jsonl.zst": zstandard.compress(lines_of(["z"])),
    }.items():
        with system.open(f"/bucket/{name}", "wb") as file:
            file.write(content)
    with system.open("/bucket/p.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["p"]}), file)
    try:
        assert read("memory://bucket") == ["p", *TEXTS, "y", "z"]
        assert read("memory://bucket/y.txt") == ["y"]
        (source,) = open_source("memory://bucket/y.txt", Reading())
        with system.open("/bucket/y.txt", "wb") as file:
            file.write(b"another")
        (changed,) = open_source("memory://bucket/y.txt", Reading())
        assert (source.name, source.identity == changed.identity) == ("memory://bucket/y.txt", False)
    finally:
        system.rm("/bucket", recursive=True)


def test_array_records_in_a_bucket_are_copied_to_be_read(tmp_path):
    content = as_array_record(tmp_path / "x.array_record", [[5, 6], [7]]).read_bytes()
    system = fsspec.filesystem("memory")
    with system.open("/ids/x.array_record", "wb") as file:
        file.write(content)
    try:
        assert [d.ids.tolist() for d in read("memory://ids")] == [[5, 6], [7]]
    finally:
        system.rm("/ids", recursive=True)


def test_what_is_not_there_or_not_a_source_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="other://x cannot be opened: Protocol not known: other"):
        read("other://x")
    for name in ("manifest.json", "train.index.npy"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"is a prepared corpus already; name it in data\.path or data\.mixture"):
        read(tmp_path)


@given(rows=st.integers(0, 10**7), size=st.integers(0, 10**12))
def test_ranges_cover_all_rows_once_in_parts_of_like_size(rows, size):
    size = min(size, rows * 10**6)
    parts = ranges(rows, size)
    assert [part.begin for part in parts] == [0, *(part.end for part in parts[:-1])][: len(parts)]
    assert (parts[-1].end if parts else 0) == rows
    assert all(part.end > part.begin for part in parts)
    assert all(part.bytes < 2 * interface.PART_BYTES + size / max(rows, 1) for part in parts)
