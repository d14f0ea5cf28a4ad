"""Data sets of the `datasets` library: folders written by `save_to_disk`, and names on the Hugging Face hub."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from a3jax.data.sources import arrow
from a3jax.data.sources.interface import ROWS, Document, Fault, Part, Row, no_column, ranges
from a3jax.errors import UserError, first_line

PREFIX = "hf:"


@dataclass(frozen=True)
class HuggingFace:
    """A folder, or `hf:OWNER/NAME[:CONFIG]`. What comes from the hub is downloaded to its cache, and read from there."""

    name: str
    split: str
    row: Row

    @property
    def identity(self) -> str:  # noqa: D102, the interface says it
        return str(self._dataset()._fingerprint)

    def parts(self) -> Sequence[Part] | Fault:  # noqa: D102, the interface says it
        dataset = self._dataset()
        if missing := no_column(self.row, dataset.column_names):
            raise UserError(f"{self.name} {missing}")
        share = len(dataset) / max(dataset.data.num_rows, 1)  # a selection of rows has the data of all of them
        return ranges(len(dataset), int(dataset.data.table.select(list(self.row.columns)).nbytes * share))

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        rows, row = self._dataset().select_columns(list(self.row.columns)).with_format("arrow"), part.begin
        try:
            for row in range(part.begin, part.end, ROWS):
                table = rows[row : min(row + ROWS, part.end)]
                yield from arrow.documents(table, row, self.name, self.row)
        except (OSError, ValueError) as error:
            yield Fault("damaged file", f"{self.name}, row {row} cannot be read: {first_line(error)}")

    def _dataset(self) -> datasets.Dataset:
        return _open(self.name, self.split)


@functools.lru_cache(maxsize=16)
def _open(name: str, split: str) -> datasets.Dataset:
    """The data set of a folder or name. Raises `UserError` for one that is not there, or a split that it has not."""
    load: Callable[[], Any]
    if name.startswith(PREFIX):
        path, _, config = name.removeprefix(PREFIX).partition(":")
        load = functools.partial(datasets.load_dataset, path, config or None, split=split)
    else:
        load = functools.partial(datasets.load_from_disk, name)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        found = load()
    except Exception as error:  # of the hub, its libraries, and whatever the data set's own files can raise
        raise UserError(f"{name} cannot be opened: {first_line(error)}") from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"{name} has no split '{split}'; it has {', '.join(found)}: choose one with --split")
        return found[split]
    return found
