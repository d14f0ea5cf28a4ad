"""Texts and JSON lines from files and standard input, where every mistake is told with its place."""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, TypeVar

from a3jax.errors import UserError
from a3jax.files.outside_json import decoded, parse_object
from a3jax.files.places import place

T = TypeVar("T")

STDIN = "-"
"""The file name that stands for standard input."""
LONGEST = 2**26
"""Bytes of a line; more is no JSON line."""


class Line(NamedTuple):
    """A JSON object."""

    where: str
    """FILE:NUMBER, for messages."""
    number: int
    """From 1."""
    value: dict[str, Any]


def has_input() -> bool:
    """Whether something is piped into the command."""
    return sys.stdin is not None and not sys.stdin.isatty()


@contextlib.contextmanager
def opened(file: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file, or standard input, and what messages call it."""
    if file == STDIN:
        yield sys.stdin.buffer, "standard input"
        return
    try:
        source = place(file).open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    with source:
        yield source, file


def whole_text(file: str | Path) -> str:
    """All of a file or of standard input, line ends as they are. Raises `UserError` unless it is UTF-8."""
    with opened(str(file)) as (source, name):
        try:
            content = source.read()
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        return decoded(content, name)


def lines(source: BinaryIO, name: str) -> Iterator[Line]:
    """The JSON objects of a file, one a line; empty lines count, and are passed over. Raises `UserError` at a broken one."""
    for where, number, line in raw_lines(source, name):
        yield Line(where, number, parse_object(line, where))


def raw_lines(source: IO[bytes], name: str) -> Iterator[tuple[str, int, bytes]]:
    """The lines of a file that are not empty: FILE:NUMBER, the number, and the bytes."""
    for number in itertools.count(1):
        line = source.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST:
            raise UserError(f"{name}:{number} is longer than {LONGEST >> 20} MiB; give one JSON object a line")
        if line.strip():
            yield f"{name}:{number}", number, line


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left. Those before a user's mistake come before the error that it raises."""
    items, wrong = iter(items), None
    while wrong is None:
        window: list[T] = []
        try:
            for item in itertools.islice(items, size):
                window.append(item)
        except UserError as error:
            wrong = error
        if window:
            yield window
        elif wrong is None:
            return
    raise wrong


def count_lines(source: BinaryIO) -> int | None:
    """How many of `lines` there are, None where the source cannot be read twice."""
    if not source.seekable():
        return None
    count = sum(1 for line in source if line.strip())
    source.seek(0)
    return count


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Add the place to a user's mistake that does not name it yet."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def check_text(name: str, text: str) -> None:
    """Raises `UserError` for a string that cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is not valid Unicode: it holds a lone surrogate at character {error.start}") from None
