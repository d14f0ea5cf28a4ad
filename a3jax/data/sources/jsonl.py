"""JSON lines, one document each; compressed files are read from their beginning, others from anywhere."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from a3jax.data.sources.files import UNREADABLE, FileSource, open_bytes
from a3jax.data.sources.interface import Chat, Document, Fault, Part, Row, Tokens, no_column, part_bytes
from a3jax.errors import first_line
from a3jax.files.outside_json import NotJson, value_of

_BLOCK = 2**20


@dataclass(frozen=True)
class Jsonl(FileSource):
    """A file of JSON objects, one a line, each a document. Blank lines are none."""

    row: Row

    def parts(self) -> Sequence[Part]:  # noqa: D102, the interface says it
        size = self.file.bytes
        if self.file.compressed:
            return [Part(0, 1, size)]
        step = part_bytes(size)
        return [Part(at, min(at + step, size), min(step, size - at)) for at in range(0, size, step)]

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        number, at, whole = 0, 0, self.file.compressed
        try:
            with open_bytes(self.file) as file:
                if part.begin:  # the line that reaches into this part belongs to the one before
                    file.seek(part.begin - 1)
                    at = part.begin - 1 + len(file.readline())
                while whole or at < part.end:
                    line = file.readline()
                    if not line:
                        return
                    at += len(line)
                    number += 1
                    if line.strip():
                        found = _read(line, self.row)
                        yield found if isinstance(found, str) else self._located(found, part, number)
        except UNREADABLE as error:
            place = f"byte {at}" if part.begin else f"line {number}"
            yield Fault("damaged file", f"{self.name} cannot be read after {place}: {first_line(error)}")

    def _located(self, found: Tokens | Chat | Fault, part: Part, number: int) -> Tokens | Chat | Fault:
        """With the line it is in. For a fault in the middle of a file, the lines before the part are counted only now."""
        if not isinstance(found, Fault):
            place = f"{self.name}, line {number} after byte {part.begin}" if part.begin else f"{self.name}:{number}"
            return dataclasses.replace(found, where=place)
        left, before = part.begin, 0
        if left:
            with open_bytes(self.file) as file:
                while left and (block := file.read(min(left, _BLOCK))):
                    before += block.count(b"\n")
                    left -= len(block)
                before += block[-1:] != b"\n"
        return Fault(found.reason, f"{self.name}:{before + number} {found.message.strip()}")


def _read(line: bytes, row: Row) -> Document:
    """The document of a line; faults are told without their place."""
    try:
        value = value_of(line, "")
    except NotJson as error:
        return Fault(error.reason, str(error))
    if not isinstance(value, dict):
        return Fault("not JSON", "is not a JSON object")
    if missing := no_column(row, list(value)):
        return Fault("no text", missing)
    return row.document([value[column] for column in row.columns], "")
