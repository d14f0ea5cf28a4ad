"""Whether a GGUF file can hold what its header counts: the reader of the package `gguf` believes every count.

The format (github.com/ggml-org/ggml/blob/master/docs/gguf.md): a magic number, the version, how many tensors and how many
pairs of metadata; then the pairs, each a name, a type and a value. A text is its length and its bytes; an array is the
type of its entries, their number, and the entries.
"""

import mmap
import struct
from pathlib import Path

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type -> bytes."""
_TEXT, _ARRAY = 8, 9
_ENTRIES = 2**24
"""The most that all arrays of a file may have: eight times those of the largest tokenizers, and little enough to be read."""


def check_header(path: Path) -> None:
    """Read over the metadata of a file. Raises `ValueError` where it counts more than follows, and for arrays of arrays."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Walk(content).metadata()


class _Walk:
    """A place in the file, which moves on."""

    def __init__(self, content: mmap.mmap):
        self._content, self._at, self._entries = content, 0, 0
        self._order = "<"

    def metadata(self) -> None:
        self._skip(4)
        if self._number("I") & 0xFFFF == 0:  # the version, of a file in the other order of bytes
            self._order = ">"
        _tensors, pairs = self._number("Q"), self._number("Q")
        for _ in range(pairs):
            self._text()
            self._value(self._number("I"))

    def _value(self, kind: int) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            kind, entries = self._number("I"), self._number("Q")
            self._entries += entries
            if self._entries > _ENTRIES:
                raise ValueError(f"arrays of {self._entries} entries")
            if kind == _TEXT:
                for _ in range(entries):
                    self._text()
            else:
                self._skip(entries * _size(kind))
        else:
            self._skip(_size(kind))

    def _text(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, letter: str) -> int:
        begin = self._at
        self._skip(struct.calcsize(letter))
        return int(struct.unpack_from(self._order + letter, self._content, begin)[0])

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._content):
            raise ValueError(f"{size} bytes counted where {len(self._content) - self._at + size} are left")


def _size(kind: int) -> int:
    if kind not in _SCALARS:
        raise ValueError(f"a value of the unknown type {kind}")
    return _SCALARS[kind]
