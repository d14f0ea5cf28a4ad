"""Texts that fill in while one looks on, in a terminal."""

import colorsys
from types import TracebackType
from typing import Self

import numpy as np
from rich.live import Live
from rich.style import Style
from rich.text import Text

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.spelling import spell
from a3jax.generate.filling import Tokens
from a3jax.outside_text import printable
from a3jax.terminal import Terminal

OPEN = "░"
"""Stands for a token that is not decided."""
NEWEST = Style(underline=True, bold=True)


def colour(probability: float) -> Style:
    """From red, for what is improbable, over yellow to green."""
    rgb = colorsys.hls_to_rgb(min(max(probability, 0.0), 1.0) / 3, 0.5, 0.75)
    return Style(color="#" + "".join(f"{round(255 * part):02x}" for part in rgb))


class Watch:
    """`with Watch(codec, console) as watch: infill_batch(..., observe=watch)`. What was shown is cleared at the end."""

    def __init__(self, codec: TextCodec, console: Terminal):
        self._codec, self._console = codec, console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")
        self._before: list[Tokens] = []
        self._pass = 0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def __call__(self, texts: list[Tokens]) -> None:
        """Show the texts of a batch after a pass."""
        if len(texts) != len(self._before) or any(len(a.tokens) != len(b.tokens) for a, b in zip(texts, self._before)):
            self._before, self._pass = [], 0  # the next batch
        shown = [_kept(new, old) for new, old in zip(texts, self._before)] if self._before else texts
        newest = max(int(text.passes.max()) for text in texts)
        self._pass += 1
        room = max(1, self._console.height - 2)
        height = max(1, room // len(texts))
        frame = Text(f"pass {self._pass}", style="dim")
        for text, now in list(zip(shown, texts))[:room]:
            lines = drawn(self._codec, text, (now.passes == newest) & (newest > 0)).wrap(self._console, self._console.width)
            frame.append("\n")
            frame.append_text(Text("\n").join(_around_newest(list(lines), height)))
        self._live.update(frame, refresh=True)
        self._before = shown


def drawn(codec: TextCodec, text: Tokens, newest: np.ndarray) -> Text:
    """A document on its way: what is given plain, what is decided coloured by its probability, and the rest open."""
    result = Text()
    kind = np.sign(text.passes[text.head :])  # open, given or decided: each is decoded by itself, as it will be at the end
    edges = np.flatnonzero(np.diff(kind)) + text.head + 1
    for begin, end in zip([text.head, *edges], [*edges, len(text.tokens)]):
        if text.passes[begin] < 0:
            result.append(OPEN * (end - begin), style="dim")
            continue
        pieces = spell(codec, text.tokens[begin:end].tolist(), inside=begin > text.head)
        for i, piece in enumerate(pieces, start=begin):
            style = colour(float(np.exp(text.log_probs[i]))) if text.passes[i] > 0 else Style()
            result.append(printable(piece), style=style + NEWEST if newest[i] else style)
    return result


def _kept(new: Tokens, old: Tokens) -> Tokens:
    """`new`, in which what was decided before it still counts as decided: a revision gives all but what it opens again."""
    decided = (new.passes == 0) & (old.passes > 0)
    log_probs = np.where(decided, old.log_probs, new.log_probs)
    return new._replace(passes=np.where(decided, old.passes, new.passes), log_probs=log_probs)


def _around_newest(lines: list[Text], height: int) -> list[Text]:
    """As many lines as there is room for, the newest tokens among them."""
    newest = [i for i, line in enumerate(lines) if any(isinstance(s.style, Style) and s.style.underline for s in line.spans)]
    begin = max(0, min((newest[-1] if newest else 0) - height // 2, len(lines) - height))
    return lines[begin : begin + height]
