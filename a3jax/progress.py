"""Progress bars for long work, on standard error, and silent where nobody watches."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from a3jax.terminal import Terminal

console = Terminal(stderr=True)


class Progress:
    """`with Progress("import", total, "tensors") as bar: bar.advance(n)`; `note` shows text beside the bar."""

    def __init__(self, title: str, total: int | None, unit: str, completed: int = 0):
        amount = (DownloadColumn(),) if unit == "bytes" else (MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *amount,
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        ]
        self._bar = RichProgress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=completed, unit=unit, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, amount: int = 1) -> None:
        """Add to what is done."""
        self._bar.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Replace the text beside the bar."""
        self._bar.update(self._task, note=text)

    def set(self, completed: int) -> None:
        """Go to another place."""
        self._bar.update(self._task, completed=completed)
