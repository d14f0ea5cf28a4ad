"""A prepared corpus on disk: its format, the writer of a shard, and a reader of any tokens by their position.

CORPUS/
    train-00000.array_record, ...     token ids; a document is one record, or several in a row where it is long
    train.index.npy                   one entry per record, in storage order: where it ends, its checksum, what it begins
    held_out-00000..., held_out.index.npy
    manifest.json                     what is in it, written last
    tokenizer.json, ...               the tokenizer it was prepared with

In a corpus of chats the highest bit of a token says that it is given: a prompt's, which is context and never to be learned.

The documents of a split, one after another in storage order, are one stream of tokens. The index says where in it each
record ends, so that tokens anywhere in a corpus of any size are found by binary search and read with few records; it is
mapped from disk, not loaded, and so is what stays in memory the same for every size.
"""

import contextlib
import functools
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from a3jax.errors import UserError, first_line
from a3jax.files.outside_json import NotJson, read_object
from a3jax.files.parts import check_whole
from a3jax.files.places import for_array_record, local_copy, place, sizes
from a3jax.files.strict import build, to_json

Split = Literal["train", "held_out"]
Dtype = Literal["uint16", "uint32"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
MANIFEST = "manifest.json"
VERSION = 2
"""Of the format; a corpus of another one has to be prepared again."""

RECORD_TOKENS = 16_384
"""Most tokens of a record: a window inside a long document reads little more than itself."""
OPEN_SHARDS = 256
"""Shards that a reader holds open at a time."""
_ENTRY = np.dtype([("end", "<i8"), ("crc", "<u4"), ("first", "?")])
"""Of a record: the stream position after its last token, zlib.crc32 of its bytes, whether it begins a document."""
_DIGESTED = 2**20
"""Bytes of an index, with the checksums of 60,000 records: those of a billion tokens where documents are long."""
_COARSE = 1024
"""Every so many entries of an index one is kept in memory, to find the others by."""


@dataclass(frozen=True)
class Shard:
    """One file of a split."""

    name: str
    records: int
    bytes: int


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds."""

    documents: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """Facts about a corpus that training checks before it reads."""

    version: int
    train: SplitCounts
    held_out: SplitCounts
    vocab: int
    tokenizer_sha256: str
    dtype: Dtype
    seed: int
    held_out_fraction: float
    start_token: int | None
    """What every document of text begins with; training wants a model whose documents begin alike."""
    end_token: int | None
    sources: tuple[str, ...]
    settings: dict[str, str]
    """What else the corpus follows from, by the name of the option."""
    characters: int
    passed_over: dict[str, int]
    """How many documents or files were left out, by reason."""
    chats: bool = False
    """Whether its tokens say which of them are given."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder. Raises `UserError` if there is none, or one of another version."""
    path = place(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a prepared corpus (no {MANIFEST}); write one with a3jax prepare")
    check_whole(path.parent)
    try:
        content = read_object(path)
    except NotJson as error:
        raise UserError(f"{error}; run a3jax prepare again") from None
    if content.get("version") != VERSION:
        raise UserError(f"{folder} was prepared by another version of a3jax; run a3jax prepare again")
    return build(Manifest, content, str(path))


def digest(folder: Path) -> str:
    """SHA-256 of what a corpus is: its manifest but for how its sources were named, and the beginnings of its indices."""
    content = read_object(place(folder) / MANIFEST)
    content.pop("sources", None)
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for split in SPLITS:
        with contextlib.suppress(FileNotFoundError), _index(place(folder), split).open("rb") as index:  # reading names it
            found.update(index.read(_DIGESTED))
    return found.hexdigest()


def dtype_of(vocab: int, chats: bool) -> Dtype:
    """The smallest type that holds the ids of a vocabulary and, of chats, the bit that says what is given."""
    return "uint16" if vocab <= 2 ** (15 if chats else 16) else "uint32"


def _given_bit(dtype: np.dtype) -> int:
    return 1 << (8 * dtype.itemsize - 1)


class ShardWriter:
    """Writes documents, in order, to one shard: `with ShardWriter(folder, "train", 3, "uint16") as shard: shard.write(ids)`.

    Shards of a split can be written by different processes. A shard is whole once `is_written` says so, which a kill on
    the way leaves False; `join_shards` makes a split of them. One without a document leaves no file of its own.
    """

    def __init__(self, folder: Path, split: Split, number: int, dtype: Dtype):
        self._path, self._entries_path = _shard(folder, split, number), _entries(folder, split, number)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._writer = ArrayRecordWriter(str(self._path), "group_size:1,zstd:1")
        self._entries: list[tuple[int, int, bool]] = []
        self._end = 0

    def write(self, tokens: Sequence[int] | np.ndarray, given_T: np.ndarray | None = None) -> None:
        """Add a document, which must hold at least one token; of a chat, with which of its tokens are given."""
        if not len(tokens):
            raise ValueError("a document without tokens cannot be written")
        ids = np.asarray(tokens, self._dtype)
        if given_T is not None:
            ids = np.where(given_T, ids | self._dtype.type(_given_bit(self._dtype)), ids).astype(self._dtype)
        for begin in range(0, len(ids), RECORD_TOKENS):
            record = ids[begin : begin + RECORD_TOKENS].tobytes()
            self._writer.write(record)
            self._end += len(record) // self._dtype.itemsize
            self._entries.append((self._end, zlib.crc32(record), begin == 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        if not self._entries or kind is not None:
            self._path.unlink()
        if kind is None:
            unfinished = self._entries_path.with_suffix(".partial")
            with unfinished.open("wb") as file:
                np.save(file, np.array(self._entries, _ENTRY))
            unfinished.rename(self._entries_path)


def is_written(folder: Path, split: Split, number: int) -> bool:
    """Whether a shard has been written to its end."""
    return _entries(folder, split, number).is_file()


def join_shards(folder: Path, split: Split, numbers: Iterable[int]) -> SplitCounts:
    """Make a split of the shards `numbers`, in this order, and write its index. Empty ones do not count."""
    shards, lengths, documents, tokens = [], [], 0, 0
    for number in numbers:
        entries, path = np.load(_entries(folder, split, number)), _shard(folder, split, number)
        if len(entries):
            shards.append((number, Shard(path.name, len(entries), path.stat().st_size)))
            lengths.append(tokens)
            documents += int(entries["first"].sum())
            tokens += int(entries["end"][-1])
    if shards:
        records = sum(shard.records for _, shard in shards)
        index = np.lib.format.open_memmap(_index(folder, split), "w+", _ENTRY, (records,))
        done = 0
        for (number, shard), before in zip(shards, lengths):
            part = index[done : done + shard.records]
            part[:] = np.load(_entries(folder, split, number))
            part["end"] += before
            done += shard.records
        index.flush()
    return SplitCounts(documents, tokens, tuple(shard for _, shard in shards))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish a corpus whose splits are joined."""
    (folder / MANIFEST).write_text(to_json(manifest))
    for path in folder.glob("*.entries.npy"):
        path.unlink()


class Span(NamedTuple):
    """Tokens of a stream. Every array has T entries."""

    tokens: np.ndarray
    """int32"""
    first: np.ndarray
    """bool: which of them begin a document."""
    given: np.ndarray
    """bool: which of them are a prompt's."""


class TokenStream:
    """The tokens of one split by position, 0 to `len(stream)`. Reading is safe from several threads and processes."""

    def __init__(self, folder: Path, manifest: Manifest, split: Split):
        """Raises `UserError` for shards that are gone or cut short, and for an index that is not theirs."""
        self._made_of = (folder, manifest, split)
        self._folder, self._shards = folder, getattr(manifest, split).shards
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._tokens, self._chats = getattr(manifest, split).tokens, manifest.chats
        there = sizes(folder)
        for shard in self._shards:
            path = folder / shard.name
            if (size := there.get(shard.name)) is None:
                raise UserError(f"{path} is missing; run a3jax prepare again")
            if size != shard.bytes:
                raise UserError(f"{path} is damaged ({size:,} bytes, not {shard.bytes:,}); run a3jax prepare again")
        self._first_record = np.cumsum([0, *(shard.records for shard in self._shards)])
        self._index = self._open_index(_index(folder, split))
        self._coarse = np.array(self._index["end"][_COARSE - 1 :: _COARSE])
        self._reader = functools.lru_cache(OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return self._tokens

    def read(self, begin_N: np.ndarray, end_N: np.ndarray) -> Span:
        """The tokens at [begin, end) of N spans of positions, one after another, T = sum(end - begin) of them.

        Raises `UserError` for a damaged record, naming it.
        """
        size = int((end_N - begin_N).sum())
        stored, first = np.empty(size, self._dtype), np.zeros(size, bool)
        low_N, high_N = self._records_at(begin_N), self._records_at(end_N - 1) + 1
        span_R = np.repeat(np.arange(len(begin_N)), high_N - low_N)
        record_R = np.arange(len(span_R)) + (high_N - np.cumsum(high_N - low_N))[span_R]
        entry_R = self._index[record_R]
        record_end_R = entry_R["end"]
        record_begin_R = np.where(record_R > 0, self._index[np.maximum(record_R - 1, 0)]["end"], 0)
        from_R, to_R = np.maximum(record_begin_R, begin_N[span_R]), np.minimum(record_end_R, end_N[span_R])
        place_R = np.cumsum(to_R - from_R) - (to_R - from_R)
        first[place_R] = entry_R["first"] & (from_R == record_begin_R)
        records = self._records(record_R, (record_end_R - record_begin_R) * self._dtype.itemsize, entry_R["crc"])
        skip_R, take_R = (from_R - record_begin_R).tolist(), (to_R - from_R).tolist()
        for at, skip, take, record in zip(place_R.tolist(), skip_R, take_R, records):
            stored[at : at + take] = np.frombuffer(record, self._dtype, take, skip * self._dtype.itemsize)
        if not self._chats:
            return Span(stored.astype(np.int32), first, np.zeros(size, bool))
        bit = self._dtype.type(_given_bit(self._dtype))
        return Span((stored & ~bit).astype(np.int32), first, (stored & bit) > 0)

    def documents(self, records: int) -> Iterator[np.ndarray]:
        """The positions where documents begin, in order, looking at so many records at a time."""
        for low in range(0, len(self._index), records):
            entry_R = np.array(self._index[low : low + records])
            begin_R = np.concatenate([[self._index[low - 1]["end"] if low else 0], entry_R["end"][:-1]])
            yield begin_R[entry_R["first"]]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStream, self._made_of

    def _open_index(self, path: Path) -> np.ndarray:
        if not self._shards:
            return np.zeros(0, _ENTRY)
        if not path.is_file():
            raise UserError(f"{path} is missing; run a3jax prepare again")
        try:
            index = np.lib.format.open_memmap(local_copy(path), mode="r")
        except ValueError as error:
            raise UserError(f"{path} is damaged ({first_line(error)}); run a3jax prepare again") from None
        records = int(self._first_record[-1])
        if index.dtype != _ENTRY or index.shape != (records,) or index[-1]["end"] != self._tokens:
            raise UserError(f"{path} does not belong to the shards beside it; run a3jax prepare again")
        return index

    def _records_at(self, position_N: np.ndarray) -> np.ndarray:
        """The record that holds each position."""
        block_N = np.searchsorted(self._coarse, position_N, side="right") * _COARSE
        ends = self._index["end"]
        within = [np.searchsorted(ends[b : b + _COARSE], p, side="right") for b, p in zip(block_N.tolist(), position_N)]
        return block_N + np.array(within, np.int64)

    def _records(self, record_R: np.ndarray, bytes_R: np.ndarray, crc_R: np.ndarray) -> list[bytes]:
        """The bytes of records by number, each checked against its length and checksum."""
        records: list[bytes] = [b""] * len(record_R)
        shard_R = np.searchsorted(self._first_record, record_R, side="right") - 1
        for number in np.unique(shard_R).tolist():
            chosen = np.flatnonzero(shard_R == number)
            inside = (record_R[chosen] - self._first_record[number]).tolist()
            where, found = self._folder / self._shards[number].name, self._read(number, inside)
            for i, record, at in zip(chosen.tolist(), found, inside):
                if len(record) != bytes_R[i] or zlib.crc32(record) != crc_R[i]:
                    raise UserError(f"{where}, record {at} is damaged (its checksum differs); run a3jax prepare again")
                records[i] = record
        return records

    def _read(self, number: int, inside: list[int]) -> list[bytes]:
        try:
            return self._reader(number).read(inside)
        except (RuntimeError, ValueError, IndexError) as error:
            path = self._folder / self._shards[number].name
            raise UserError(f"{path} is damaged ({first_line(error)}); run a3jax prepare again") from None

    def _open(self, number: int) -> ArrayRecordReader:
        shard = self._shards[number]
        options = "readahead_buffer_size:0,max_parallelism:0"
        reader = ArrayRecordReader(for_array_record(self._folder / shard.name), options, file_reader_buffer_size=32_768)
        if (records := reader.num_records()) != shard.records:  # of what it cannot read it says that there are none
            raise ValueError(f"{records:,} records, not {shard.records:,}")
        return reader


def _shard(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{split}-{number:05d}.array_record"


def _entries(folder: Path, split: Split, number: int) -> Path:
    """The index of one shard, there from its end to the end of the corpus."""
    return folder / f"{split}-{number:05d}.entries.npy"


def _index(folder: Path, split: Split) -> Path:
    return folder / f"{split}.index.npy"
