"""Data sets of TensorFlow Datasets, kept as ArrayRecord: they are read without TensorFlow."""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from a3jax.data.sources.interface import ROWS, Document, Fault, Part, Row, no_column, ranges
from a3jax.errors import UserError, first_line

PREFIX = "tfds:"
_NOT_READ = (RuntimeError, ValueError, IndexError, OSError, KeyError)


@dataclass(frozen=True)
class Tfds:
    """`tfds:NAME[/CONFIG][:VERSION]` in $TFDS_DATA_DIR, or the folder of one version of a data set."""

    name: str
    split: str
    row: Row

    @property
    def identity(self) -> str:  # noqa: D102, the interface says it
        builder = _builder(self.name)
        return f"{builder.info.full_name} {builder.info.splits[self.split].shard_lengths}"

    def parts(self) -> Sequence[Part] | Fault:  # noqa: D102, the interface says it
        rows, info = _rows(self.name, self.split), _builder(self.name).info
        if missing := no_column(self.row, sorted(info.features)):
            raise UserError(f"{self.name} {missing}")
        return ranges(len(rows), info.splits[self.split].num_bytes)

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        row = part.begin
        try:
            rows = _rows(self.name, self.split)
            for begin in range(part.begin, part.end, ROWS):
                for example in rows.__getitems__(range(begin, min(begin + ROWS, part.end))):
                    yield self.row.document([example[column] for column in self.row.columns], f"{self.name}, row {row}")
                    row += 1
        except _NOT_READ as error:
            yield Fault("damaged file", f"{self.name}, row {row} cannot be read: {first_line(error)}")


@functools.lru_cache(maxsize=16)
def _builder(name: str) -> Any:
    """What knows a data set on disk. Raises `UserError` for one that is not there."""
    try:
        if not name.startswith(PREFIX):
            return tfds.builder_from_directory(name)
        builder = tfds.builder(name.removeprefix(PREFIX))
    except Exception as error:  # it asserts, and raises errors of its own for names, versions and files
        raise UserError(f"{name} cannot be opened: {first_line(error)}; {_hint(name)}") from None
    if not Path(builder.data_dir).is_dir():
        raise UserError(f"{name} has not been built in {builder.data_dir}; {_hint(name)}")
    return builder


@functools.lru_cache(maxsize=16)
def _rows(name: str, split: str) -> Any:
    """The rows of a split, by number."""
    builder = _builder(name)
    if split not in builder.info.splits:
        raise UserError(f"{name} has no split '{split}'; it has {', '.join(builder.info.splits)}: choose one with --split")
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError:
        raise UserError(f"{name} is kept as {builder.info.file_format.value}, not as ArrayRecord; {_hint(name)}") from None


def _hint(name: str) -> str:
    """What there is instead, or how to make what is missing."""
    named, _, version = name.removeprefix(PREFIX).partition(":")
    folder = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    versions = sorted(path.parent.name for path in (folder / named).glob("*/features.json"))
    if version and versions:
        return f"{folder / named} has version {', '.join(versions)}"
    return f"TFDS looks in {folder} ($TFDS_DATA_DIR), where tfds build {named} --file_format=array_record puts it"
