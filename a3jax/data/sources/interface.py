"""What a source of documents is: it lists its parts, and reads the documents of one part, in an order that never changes.

A document is a text, token ids that somebody made before, or a chat. What is wrong with a document comes in its place
as a `Fault`, so that whoever reads decides whether to stop there or to go on and count.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PART_BYTES = 16 * 2**20
"""About how much of a source is read in one go, at most, where its format can be entered in the middle."""
ROWS = 256
"""Rows that a columnar format hands over at a time."""


@dataclass(frozen=True)
class Fault:
    """A document, or the rest of a part, that cannot be read."""

    reason: str
    """A few words, the same for all of a kind: faults are counted by them."""
    message: str
    """One sentence that names the file and the place in it."""
    expected: bool = False
    """Whether it is no mistake: a file inside a folder of texts that is none."""


@dataclass(frozen=True)
class Tokens:
    """A document that is tokenized already. Whether its ids fit the tokenizer, only who has that can tell."""

    ids: np.ndarray
    """int; start and end of the document are among them where they are wanted."""
    where: str


@dataclass(frozen=True)
class Chat:
    """A conversation. How it is written, and what of that the assistant says, only the template of a model can tell."""

    messages: tuple[Mapping[str, Any], ...]
    """Each with a `role` and, but for calls of tools, a `content`, which is text or a list of parts."""
    given: int
    """So many of them are a prompt: nothing in them is to be learned, whoever speaks."""
    where: str


Document = str | Tokens | Chat | Fault


class Row(Protocol):
    """What becomes of a row of a source that has columns, or of a line that has fields."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that are read."""

    @property
    def option(self) -> str:
        """What names them on a command line."""

    def document(self, values: Sequence[Any], where: str) -> Document:
        """The document of a row, from the values of its columns."""


@dataclass(frozen=True)
class Part:
    """What is read in one go: the documents that begin at [begin, end), counted as the source likes."""

    begin: int
    end: int
    bytes: int
    """About how large its texts are as stored; for progress and for shards of like size."""


class Source(Protocol):
    """One file, or one named data set. It is small, and can be sent to other processes."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def identity(self) -> str:
        """Changes when the contents do, as far as can be told without reading them."""

    def parts(self) -> Sequence[Part] | Fault:
        """All of it, in order; a fault where it cannot be opened. Raises `UserError` for a column that is not there."""

    def documents(self, part: Part) -> Iterator[Document]:
        """The documents of a part, in order."""


def part_bytes(size: int) -> int:
    """How large the parts of a file are: those of a small one are small too, so that several workers can share it."""
    return min(PART_BYTES, max(PART_BYTES // 16, size // 64))


def ranges(rows: int, size: int) -> list[Part]:
    """`rows` rows that take `size` bytes together, in parts of about `part_bytes`."""
    count = max(1, min(rows, round(size / part_bytes(size))))
    edges = [rows * i // count for i in range(count + 1)]
    return [Part(begin, end, size * (end - begin) // max(rows, 1)) for begin, end in itertools.pairwise(edges) if end > begin]


def document(value: Any, where: str, column: str) -> Document:
    """The value of a row: text, UTF-8 bytes, a list of token ids, or nothing at all, which is an empty text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            return not_utf8(where, error)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which is no character
            return Fault("not Unicode text", f"{where} is not Unicode text in '{column}': {error}")
        return value
    if isinstance(value, list | np.ndarray):
        try:
            ids = np.asarray(value)
        except ValueError:  # lists of lists, not all of one length
            ids = np.zeros(1)
        if not ids.size:
            return ""
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return Tokens(ids, where)
    kind = {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), f"the number {value}")
    return Fault("no text", f"{where} has {kind} in '{column}', neither text nor token ids: name another with --column")


def not_utf8(where: str, error: UnicodeDecodeError, expected: bool = False) -> Fault:
    """The fault of bytes that are not text."""
    return Fault("not UTF-8 text", f"{where} is not UTF-8: {error.reason} at byte {error.start}", expected)


def no_column(row: Row, known: Sequence[str]) -> str | None:
    """What a message says of a column that is not there; None if all are."""
    for column in row.columns:
        if column not in known:
            return f"has no '{column}'; it has {', '.join(known) or 'none'}: name one with {row.option}"
    return None
