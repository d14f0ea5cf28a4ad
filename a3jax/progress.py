"""Progress of long work: a bar on a terminal or in a notebook, and elsewhere, such as in a log, a line now and then."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from a3jax.outside_text import say
from a3jax.terminal import Terminal

console = Terminal(stderr=True)
EVERY = 30.0
"""Seconds between two lines, at least: they are written as the work advances."""


class Progress:
    """`with Progress("import", total, "tensors") as bar: bar.advance(n)`; `note` shows text beside the bar.

    One of several processes that do the same can be kept from writing lines: `lines` false.
    """

    def __init__(self, title: str, total: int | None, unit: str, completed: int = 0, lines: bool = True):
        amount = (DownloadColumn(),) if unit == "bytes" else (MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *amount,
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        ]
        shown = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._bar = RichProgress(*columns, console=console, disable=not shown)
        self._task = self._bar.add_task(title, total=total, completed=completed, unit=unit, note="")
        self._lines = lines and not shown
        self._told = time.monotonic(), float(completed)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.refresh()  # which stopping does on a terminal alone
        self._bar.stop()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add to what is done, and say of it what `note` says."""
        self._bar.advance(self._task, amount)
        if note is None:
            self._tell()
        else:
            self.note(note)

    def note(self, text: str, at_once: bool = False) -> None:
        """Replace the text beside the bar; where there is none it is written, with the next line or `at_once`."""
        self._bar.update(self._task, note=text)
        self._tell(at_once)

    def set(self, completed: int) -> None:
        """Go to another place."""
        self._bar.update(self._task, completed=completed)
        self._told = time.monotonic(), float(completed)

    def _tell(self, at_once: bool = False) -> None:
        """Write a line if it is time. Its speed is that since the last one, for much work gets slower on its way.

        One that is written `at_once` says none.
        """
        (then, before), now = self._told, time.monotonic()
        if not self._lines or (now - then < EVERY and not at_once):
            return
        (task,) = self._bar.tasks
        self._told = now, task.completed
        amount, unit = _amounts(task.fields["unit"])
        total = "" if task.total is None else f" of {amount(task.total)}"
        parts = [f"{amount(task.completed)}{total}{unit}"]
        if not at_once and (speed := (task.completed - before) / (now - then)) > 0:
            parts.append(f"{amount(speed)} a second" if speed >= 1 else f"{amount(60 * speed)} a minute")
            if task.total is not None:
                parts.append(f"about {_duration((task.total - task.completed) / speed)} left")
        note = task.fields["note"]
        say(f"{task.description}: {', '.join(parts)}{'; ' if note else ''}{note}")


def _amounts(unit: str) -> tuple[Callable[[float], str], str]:
    """How a number of them is written, and what then stands behind it."""
    if unit == "bytes":
        return lambda number: decimal(int(number)), ""
    return lambda number: f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}", f" {unit}"


def _duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    size, name = next(((size, name) for size, name in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.0f} {name}"
