"""What Parquet files and `datasets` have in common: documents out of Arrow columns."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from a3jax.data.sources.interface import Document, Row


def documents(table: pa.Table | pa.RecordBatch, first: int, name: str, row: Row) -> Iterator[Document]:
    """The documents of a table's columns, whose first row is number `first` of the file or data set `name`."""
    columns = [_values(table.column(column)) for column in row.columns]
    for number, values in enumerate(zip(*columns), first):
        yield row.document(values, f"{name}, row {number}")


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Text as bytes, so that what is not UTF-8 spoils one row and not the batch; everything else as it is."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())
    return column.to_pylist()
