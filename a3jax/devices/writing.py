"""What process 0 does for all: write, and read what only one can. All run the same lines, and know what came of it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from a3jax.devices.agreement import RAISED, from_runtime, gravity
from a3jax.devices.board import telling
from a3jax.devices.processes import is_alone, is_first
from a3jax.files.jsonl import Lines, growing

T = TypeVar("T")


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns in process 0, which alone does it, for all.

    It is a JSON value, and comes to the other processes as such. Where `work` fails, all raise: the same line if it is a
    `UserError`. The others may wait here for as long as it takes, for no device waits with them.
    """
    if is_alone():
        return work()
    if not is_first():
        told = telling().hear()
        if "failed" in told:
            raise RAISED[told["failed"]](told["why"])
        return told["value"]
    try:
        value = work()
    except Exception as error:
        if not from_runtime(error):
            telling().tell({"failed": gravity(error), "why": str(error)})
        raise
    telling().tell({"value": value})
    return value


@contextlib.contextmanager
def growing_by_first(out: Path | BinaryIO, what: str, *begins: str, holds: tuple[str, ...] = ()) -> Iterator[Lines]:
    """`growing` in process 0; in others a file without lines, and what is added to it goes nowhere."""
    with contextlib.ExitStack() as held:
        files: list[Lines] = []
        by_first(lambda: files.append(held.enter_context(growing(out, what, *begins, holds=holds))))
        yield files[0] if files else held.enter_context(growing(held.enter_context(open(os.devnull, "wb")), what))
