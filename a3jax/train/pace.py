"""How often checkpoints are saved: whether it is time for one, and whether they are written as fast as they come."""

import time
from collections.abc import Callable

import jax

from a3jax.progress import console

WORTH_TELLING = 1.0
"""Seconds of waiting for a save, below which nobody needs to change anything."""


class Interval:
    """Says, once every so many minutes, that it is time; never, where there are none."""

    def __init__(self, minutes: float | None):
        self._seconds, self._last = None if minutes is None else 60 * minutes, time.monotonic()

    def passed(self) -> bool:
        """Whether it is time, said once."""
        now = time.monotonic()
        if self._seconds is None or now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Pace:
    """When saves begin; tells once if one of them has to wait for the one before it."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._told = False

    def begins(self) -> None:
        """A save begins now."""
        self._begun = time.monotonic()

    def waited(self, until_written: Callable[[], None]) -> None:
        """A save is due and the one before it not written yet: wait for it."""
        due = time.monotonic()
        until_written()
        written = time.monotonic()
        if self._begun is None or self._told or jax.process_index() != 0 or written - due < WORTH_TELLING:
            return
        self._told = True
        took, between = written - self._begun, due - self._begun
        what = f"a checkpoint took {took:.1f} s to be written, and the next one was due after {between:.1f} s, so steps wait"
        console.print(
            f"{what}; set train.save_every or train.save_minutes higher, or write to faster storage", soft_wrap=True
        )
