"""Blanks that are filled by drawing tokens, and judged by their text alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.errors import UserError
from a3jax.evaluate.continuations import seed_of
from a3jax.evaluate.local_data import Row
from a3jax.evaluate.pieces import TOKENS, by_itself, items
from a3jax.evaluate.task import Item
from a3jax.generate.infill import document_of
from a3jax.generate.request import Request, fill
from a3jax.ordering.sequence import bucket
from a3jax.weights.loading import Model

PLACES = 1024
"""Decoding looks at so many open places at most."""


class Blank(NamedTuple):
    """What stands around a blank, and what belongs into it."""

    before: str
    after: str
    tokens: int
    answers: tuple[str, ...]


class Drawing(NamedTuple):
    """How a task's blanks are asked for, drawn and judged."""

    ask: Callable[[Mapping[str, Any], TextCodec], Blank]
    judge: Callable[[str, Sequence[str]], dict[str, float]]
    """What was filled in and the answers -> the figures."""
    temperature: float
    top_p: float
    steps: int = PLACES
    """Passes at most; a blank of fewer tokens takes one for each."""
    first: int | None = None
    """So many rows at most."""


class Pace(NamedTuple):
    """How blanks are filled, whatever their size."""

    decoding: Decoding
    steps: int | None = None
    """Passes at most, all open places being looked at, in a mode that can be told so; else as the decoding has it."""

    def of(self, tokens: int, seed: int) -> Decoding:
        """For a blank of so many tokens."""
        if self.steps is None:
            return dataclasses.replace(self.decoding, seed=seed)
        commit, window = math.ceil(tokens / self.steps), min(bucket(tokens), PLACES)
        return dataclasses.replace(self.decoding, seed=seed, commit=commit, window=window)


class Drawn:
    """What a task's judge says of blanks that are filled by drawing."""

    def __init__(
        self,
        name: str,
        model: Model,
        drawing: Drawing,
        pace: Pace,
        source: str,
        rows: Sequence[Row],
        left_out: Counter[str],
        skip_bad: bool = False,
        limit: int = 1000,
    ):
        """The first `limit` rows, or as many as `drawing` takes.

        Raises `UserError` as `pieces.items` for one that is too long, or whose answer has no token.
        """
        self.name, self._model, self._judge, self._pace = name, model, drawing.judge, pace

        def asked(row: Mapping[str, Any]) -> tuple[int, Blank]:
            blank = drawing.ask(row, model.codec)
            return _length(model, blank, pace.decoding.heal), blank

        self.items = items(name, rows[: min(limit, drawing.first or limit)], asked, skip_bad, left_out)
        self.protocol = {
            "decoding": {**pace.decoding.recorded(), "steps": pace.steps},
            "seeds": "of each blank its own, from the seed and its name",
            "tokens": TOKENS,
            "items": "the first, in the order of the file",
        }
        self.data = {
            "source": source, "blanks": len(self.items), "of": len(rows), "left_out": dict(sorted(left_out.items())),
        }  # fmt: skip

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Fill every blank, and judge it."""
        blanks = [Blank(*item.content) for item in items]
        requests = [
            Request(_template(blank, self._model.codec), self._decoding(blank, item.id), item.length)
            for item, blank in zip(items, blanks)
        ]
        rows = []
        for blank, request, filled in zip(blanks, requests, fill(self._model, requests, batch)):
            how = request.decoding.mode if request.decoding.finds_order else request.decoding.order
            text = filled.blanks[0].text
            figures = {column: (value, 1.0) for column, value in self._judge(text, blank.answers).items()}
            rows.append({"text": text, "answers": list(blank.answers), "figures": {self.name: {how: figures}}})
        return rows

    def _decoding(self, blank: Blank, name: str) -> Decoding:
        return self._pace.of(blank.tokens, seed_of(self._pace.decoding.seed, name))


def _template(blank: Blank, codec: TextCodec) -> Template:
    return Template((blank.before, by_itself(blank.after, codec)), (blank.tokens,))


def _length(model: Model, blank: Blank, heal: bool) -> int:
    """Of the document. Raises `UserError` if it does not fit, or there is nothing to fill in."""
    if blank.tokens < 1:
        raise UserError("the answer has no token of its own")
    return len(document_of(model, _template(blank, model.codec), heal).tokens)
