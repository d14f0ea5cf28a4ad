"""The console of everything that is shown in a terminal with colours, tables or bars."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from a3jax.outside_text import printable


class Terminal(Console):
    """A console that takes text as it is: no markup, no emoji, no guessed colours, and `printable` alone reaches it."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written, piece by piece."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
