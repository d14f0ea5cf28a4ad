"""From what the user writes to sources: a file, a folder or a bucket's, a data set's folder, `hf:` or `tfds:` and a name."""

import re
from dataclasses import dataclass

from a3jax.data.sources.array_record import TokenDtype, TokenRecords
from a3jax.data.sources.files import File, find, names_inside
from a3jax.data.sources.interface import Row, Source
from a3jax.data.sources.jsonl import Jsonl
from a3jax.data.sources.rows import row_of
from a3jax.data.sources.text import Text
from a3jax.errors import UserError

_JSONL = re.compile(r"\.(jsonl|ndjson)(\.gz|\.zst)?$|\.json(\.gz|\.zst)$")
_PARQUET = re.compile(r"\.parquet$")
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$")


@dataclass(frozen=True)
class Reading:
    """What is read of a source that holds more than one thing."""

    column: str = "text"
    """Field or column that holds the text, or token ids."""
    split: str = "train"
    """Of data sets that have splits."""
    include: tuple[str, ...] = ("*",)
    """Shell patterns of files to read inside folders."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of files to pass over."""
    token_dtype: TokenDtype = "uint16"
    """Of the records of ArrayRecord files."""
    chat: tuple[str, ...] = ()
    """In place of `column`, that of chats, or the two of prompts and responses."""

    @property
    def row(self) -> Row:
        """What becomes of a row."""
        return row_of(self.column, self.chat)


def open_source(named: str, reading: Reading) -> list[Source]:
    """The sources that a name stands for: one for a file or a data set, one per file for a folder.

    Raises `UserError` for what is not there, or cannot be reached.
    """
    if named.startswith("tfds:"):
        return [_tfds(named, reading)]
    if named.startswith("hf:") and not named.startswith("hf://"):
        return [_hugging_face(named, reading)]
    inside = names_inside(named)
    if inside & {"state.json", "dataset_dict.json"}:
        return [_hugging_face(named, reading)]
    if "features.json" in inside:
        return [_tfds(named, reading)]
    if {"manifest.json", "train.index.npy"} <= inside:
        raise UserError(f"{named} is a prepared corpus already; name it in data.path or data.mixture")
    return [_of_file(file, reading) for file in find(named, reading.include, reading.exclude)]


def _of_file(file: File, reading: Reading) -> Source:
    if _JSONL.search(file.name):
        return Jsonl(file, reading.row)
    if _PARQUET.search(file.name):
        from a3jax.data.sources.parquet import Parquet

        return Parquet(file, reading.row)
    if reading.chat:
        raise UserError(f"{file.name} has no columns, and so no chats; choose files with --include, or leave --chat out")
    return TokenRecords(file, reading.token_dtype) if _ARRAY_RECORD.search(file.name) else Text(file)


def _hugging_face(named: str, reading: Reading) -> Source:
    try:
        from a3jax.data.sources.huggingface import HuggingFace
    except ImportError:
        raise UserError(f"{named} needs the package datasets; pip install 'a3jax[datasets]'") from None
    return HuggingFace(named, reading.split, reading.row)


def _tfds(named: str, reading: Reading) -> Source:
    from a3jax.data.sources.tfds import Tfds

    return Tfds(named, reading.split, reading.row)
