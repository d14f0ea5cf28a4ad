"""Files of JSON lines that grow: a process that was stopped, or killed, goes on with what it has written.

Lines are added whole, a batch in one write, and the file is held for one process. A file in a bucket grows on this machine
and is sent there every half minute (`a3jax.files.desk`). What a kill tears off is the last line
alone, and it is cut off when the file is taken up again. Which lines are the right ones knows whoever wrote them.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from a3jax.errors import UserError
from a3jax.files.desk import Desk
from a3jax.files.folders import is_full_disk, unwritable
from a3jax.files.holding import held, hold
from a3jax.files.outside_json import NotJson, parse_object
from a3jax.files.places import is_local
from a3jax.outside_text import say


class Line(NamedTuple):
    """A line that is there already."""

    where: str
    """FILE:NUMBER, for messages."""
    value: dict[str, Any]


class Lines:
    """A file that lines are added to, or a stream, in which none can be there before."""

    def __init__(
        self, file: BinaryIO, path: Path | None, out: Path | None, what: str, begins: tuple[str, ...], holds: tuple[str, ...]
    ):
        """`path` is where it grows, `out` what messages call it."""
        self._file, self._path, self._out, self._what, self._holds = file, path, out, what, holds
        self._begins = tuple(f'{{"{name}": '.encode() for name in begins)

    def there(self) -> Iterator[Line]:
        """The lines that are there, in order; a torn last one is cut off. Raises `UserError` for any that is none of ours."""
        if self._path is None or not self._path.is_file():  # a pipe, say, or /dev/null
            return
        with self._path.open("rb") as file:
            at = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and self._is_torn(line):
                    self._file.truncate(at)
                    return
                at += len(line)
                yield Line(f"{self._out}:{number}", self._read(line, f"{self._out}:{number}"))

    def keep(self, count: int) -> None:
        """Cut off all but the first `count` lines."""
        if self._path is not None:
            with self._path.open("rb") as file:
                self._file.truncate(sum(map(len, itertools.islice(file, count))))

    def append(self, values: Sequence[dict[str, Any]]) -> None:
        """Add lines, in one write where that is possible. Raises `UserError` if the disk is full."""
        data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        try:
            while data:
                data = data[self._file.write(data) :]
            self._file.flush()
        except OSError as error:
            if is_full_disk(error):
                raise UserError("no more can be written: the disk is full; make room and run it again") from None
            raise

    def _is_torn(self, line: bytes) -> bool:
        """Whether it is the beginning of one of ours, or one that lacks its end, not something else that would be lost."""
        if self._holds:
            with contextlib.suppress(NotJson):
                return any(name in parse_object(line, "") for name in self._holds)
        return any(line.startswith(begin) or begin.startswith(line) for begin in self._begins)

    def _read(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            if line.startswith(self._begins):
                value = parse_object(line, where)
                if not self._holds or any(name in value for name in self._holds):
                    return value
            why = ""
        except NotJson as error:
            why = f" ({str(error).removeprefix(where).strip()})"
        raise UserError(f"{where} is no {self._what}{why}; choose another file, or cut this one off there")


@contextlib.contextmanager
def growing(out: Path | BinaryIO, what: str, *begins: str, holds: tuple[str, ...] = ()) -> Iterator[Lines]:
    """The file `out`, held for this process, or a stream.

    Its lines are objects whose first name is one of `begins`. A last one without its end is taken for torn where it is not
    whole, or holds one of the names `holds` that only ours have.

    `what` a line is messages say. Raises `UserError` for a file that cannot be written, or that another process writes.
    """
    if not isinstance(out, PurePath):
        yield Lines(out, None, None, what, begins, holds)
        return
    with contextlib.ExitStack() as stack:
        try:
            if not is_local(out):
                stack.enter_context(held(out.with_name(f"{out.name}.lock"), out))
            here = stack.enter_context(Desk(out.parent, out.name)).folder / out.name
            file = stack.enter_context(here.open("ab", buffering=0))
        except OSError as error:
            raise unwritable(out, error) from None
        if is_local(out):
            hold(file, out)
        try:
            yield Lines(file, here, out, what, begins, holds)
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped; the same command goes on from {out}")
            raise
