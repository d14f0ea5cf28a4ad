"""ArrayRecord files of token ids, one document a record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from a3jax.data.sources.files import FileSource, is_local, local_copy
from a3jax.data.sources.interface import ROWS, Document, Fault, Part, Tokens, ranges
from a3jax.errors import first_line

TokenDtype = Literal["uint16", "uint32", "int32", "int64"]


@dataclass(frozen=True)
class TokenRecords(FileSource):
    """A file whose records are little-endian token ids of `dtype`."""

    dtype: TokenDtype

    def parts(self) -> Sequence[Part] | Fault:  # noqa: D102, the interface says it
        try:
            with local_copy(self.file) as path:
                reader = ArrayRecordReader(path)
                count = reader.num_records()
                reader.close()
        except (RuntimeError, ValueError, OSError) as error:
            return Fault("damaged file", f"{self.name} cannot be read: {first_line(error)}")
        if not count:  # the footer that counts them is at the end of the file
            return Fault("damaged file", f"{self.name} has no records: it is cut short, or no ArrayRecord file")
        whole = Part(0, count, self.file.bytes)  # a remote file is copied here each time that a part of it is read
        return ranges(count, self.file.bytes) if is_local(self.file) else [whole]

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        dtype, at = np.dtype(self.dtype).newbyteorder("<"), part.begin
        try:
            with local_copy(self.file) as path:
                reader = ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
                for begin in range(part.begin, part.end, ROWS):
                    for record in reader.read(begin, min(begin + ROWS, part.end)):
                        yield self._document(record, dtype, at)
                        at += 1
                reader.close()
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            yield Fault("damaged file", f"{self.name}, record {at} cannot be read: {first_line(error)}")

    def _document(self, record: bytes, dtype: np.dtype, at: int) -> Document:
        where = f"{self.name}, record {at}"
        if len(record) % dtype.itemsize:
            size = f"{len(record)} bytes, no multiple of {dtype.itemsize}"
            return Fault("no token ids", f"{where} is {size}: name its type with --token-dtype")
        return Tokens(np.frombuffer(record, dtype), where) if record else ""
