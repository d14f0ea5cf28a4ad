"""Parquet files: the columns of a row, read row group by row group, and of a row group a few pages at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from a3jax.data.sources import arrow
from a3jax.data.sources.files import FileSource, open_raw
from a3jax.data.sources.interface import ROWS, Document, Fault, Part, Row, no_column, part_bytes
from a3jax.errors import UserError, first_line

_BUFFER = 2**20
_DAMAGED = (pa.ArrowException, OSError)


@dataclass(frozen=True)
class Parquet(FileSource):
    """A Parquet file with a document in every row. A part is consecutive row groups."""

    row: Row

    def parts(self) -> Sequence[Part] | Fault:  # noqa: D102, the interface says it
        try:
            with open_raw(self.file) as raw:
                metadata = pq.read_metadata(raw)
                names = metadata.schema.to_arrow_schema().names
        except _DAMAGED as error:
            return self._damaged(f"{self.name} cannot be read", error)
        if missing := no_column(self.row, names):
            raise UserError(f"{self.name} {missing}")
        parts, begin, size, step = [], 0, 0, part_bytes(self.file.bytes)
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            columns = (group.column(j) for j in range(group.num_columns))
            size += sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in self.row.columns)
            if size >= step or i == metadata.num_row_groups - 1:
                parts.append(Part(begin, i + 1, size))
                begin, size = i + 1, 0
        return parts

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        try:
            with open_raw(self.file) as raw:
                file = pq.ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
                rows = [file.metadata.row_group(i).num_rows for i in range(part.end)]
                for group in range(part.begin, part.end):
                    yield from self._row_group(file, group, sum(rows[:group]))
        except _DAMAGED as error:
            yield self._damaged(f"{self.name} cannot be read", error)

    def _row_group(self, file: pq.ParquetFile, group: int, row: int) -> Iterator[Document]:
        """The documents of a row group, whose first row is number `row`; one that is damaged leaves the others readable."""
        try:
            for batch in file.iter_batches(ROWS, [group], list(self.row.columns), use_threads=False):
                yield from arrow.documents(batch, row, self.name, self.row)
                row += len(batch)
        except _DAMAGED as error:
            yield self._damaged(f"{self.name}, row {row} cannot be read", error)

    def _damaged(self, what: str, error: Exception) -> Fault:
        return Fault("damaged file", f"{what}: {first_line(error)}")
