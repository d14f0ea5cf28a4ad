"""Blanks filled all together or, where their lengths are unknown, one after the other, each up to its end.

A blank of unknown length is a gap of as many places as it may have tokens. It is filled from left to right, and ends with
the model's end token, or a stop string; the places behind its end stay empty, and what follows the gap stands where it stood,
so that it can be read before the length is known (`a3jax.ordering.layout`). A model that fills in the middle (mode fim) reads
what follows first instead, and has the blank behind everything else.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from a3jax.decode.cached import Beginning
from a3jax.decode.document import Document
from a3jax.decode.settings import Decoding
from a3jax.generate.filling import End, Filling, Observe, Step, Tokens, end_of, fill
from a3jax.generate.middle import middle_last
from a3jax.model.network import check_context
from a3jax.weights.loading import Model

T = TypeVar("T")


class Filled(NamedTuple):
    """A document filled, without the places that stayed empty."""

    document: Document
    text: Tokens
    ends: dict[int, End]
    """Where blanks that did not fill up have their ends, by number."""


def blanks_filled(
    model: Model, document: Document, decoding: Decoding, open_blanks: frozenset[int] = frozenset()
) -> Filling[Filled]:
    """Fill a document. `open_blanks` are the numbers of the blanks whose lengths are unknown."""
    if decoding.mode == "fim" or open_blanks:
        return (yield from _one_by_one(model, document, decoding, open_blanks))
    text = yield Step(document, decoding)
    end = end_of(model, document, decoding, text)
    ends = {} if end is None else {len(document.blanks) - 1: end}
    empty_L = np.arange(len(document.tokens)) >= (len(document.tokens) if end is None else end.tokens)
    return _without_empty(document, text, empty_L, ends)


def side_by_side(
    model: Model, fillings: Sequence[Filling[T]], observe: Observe | None = None, beginning: Beginning | None = None
) -> list[T]:
    """Fill several texts, their steps together, each of which takes one at least.

    One that takes fewer goes along, with its last, so that the batch stays as large. Of steps that are the first a
    `beginning` may have been read, as `a3jax.decode.loop.decode` says.
    """
    steps = [next(filling) for filling in fillings]
    found: dict[int, T] = {}
    while len(found) < len(fillings):
        for i, tokens in enumerate(fill(model, steps, observe, beginning)):
            if i not in found:
                try:
                    steps[i] = fillings[i].send(tokens)
                except StopIteration as end:
                    found[i] = end.value
        beginning = None
    return [found[i] for i in range(len(fillings))]


def _one_by_one(model: Model, document: Document, decoding: Decoding, open_blanks: frozenset[int]) -> Filling[Filled]:
    filling = _Filling(document)
    for number in range(len(document.blanks)):
        how = _of_blank(decoding, document, open_blanks, number)
        if how.mode == "fim":
            step = Step(filling.middle_last(number, model.record.fim_tokens), dataclasses.replace(how, mode="ar"))
            check_context(model, len(step.document.tokens))
        else:
            step = Step(filling.with_blank(number), how, filling.empty_but(number))
        text = yield step
        filling.take(number, step.document, text, end_of(model, step.document, step.decoding, text))
    return _without_empty(document, filling.text, filling.empty_L, filling.ends)


def _of_blank(decoding: Decoding, document: Document, open_blanks: frozenset[int], number: int) -> Decoding:
    """How blank `number` is filled: an open one may end, and so may the last where the text is one that may."""
    continued = decoding.ends and number == len(document.blanks) - 1
    if number in open_blanks or continued:
        return dataclasses.replace(decoding, ends=True)
    return dataclasses.replace(decoding, ends=False, stop=())


class _Filling:
    """A document some of whose blanks are filled."""

    def __init__(self, document: Document):
        self.document = document
        given_L = np.array(document.given)
        zeros_L = np.zeros(len(given_L), np.float32)
        self.text = Tokens(np.array(document.tokens), zeros_L, np.where(given_L, 0, -1), document.head)
        self.empty_L = np.zeros(len(given_L), bool)
        """Places that hold nothing, behind the ends of blanks."""
        self.ends: dict[int, End] = {}

    def with_blank(self, number: int) -> Document:
        """The document with one blank to be filled, all blanks before it being given, and none of their empty places."""
        kept_L, blank = self._kept(number)
        given_L = self.text.passes[kept_L] >= 0
        given_L[blank] = False
        tokens = tuple(self.text.tokens[kept_L].tolist())
        healed = (self.document.healed[number],)
        return self.document._replace(tokens=tokens, given=tuple(given_L.tolist()), blanks=(blank,), healed=healed)

    def empty_but(self, number: int) -> np.ndarray:
        """Which places of `with_blank` hold nothing meanwhile: all blanks behind."""
        kept_L, blank = self._kept(number)
        empty_L = self.text.passes[kept_L] < 0
        empty_L[blank] = False
        return empty_L

    def middle_last(self, number: int, marks: Sequence[int]) -> Document:
        """The same with the blank behind all text around it."""
        kept_L, _ = self._kept(number)
        blanks = tuple(_moved(place, kept_L) for place in self.document.blanks)
        return middle_last(self.document._replace(blanks=blanks), self.text.tokens[kept_L].tolist(), number, marks)

    def _kept(self, number: int) -> tuple[np.ndarray, slice]:
        """Which places are there while a blank is filled, and where it then stands."""
        kept_L = ~self.empty_L
        kept_L[self.document.blanks[number]] = True
        return kept_L, _moved(self.document.blanks[number], kept_L)

    def take(self, number: int, staged: Document, found: Tokens, end: End | None) -> None:
        """Keep what was filled into a blank, up to its end."""
        place, (source,) = self.document.blanks[number], staged.blanks
        passed = max(0, int(self.text.passes.max()))
        self.text.tokens[place], self.text.log_probs[place] = found.tokens[source], found.log_probs[source]
        self.text.passes[place] = np.where(found.passes[source] > 0, found.passes[source] + passed, -1)
        if end is not None:
            self.ends[number] = end
            behind = slice(place.start + end.tokens - source.start, place.stop)
            self.empty_L[behind], self.text.passes[behind] = True, -1


def _without_empty(document: Document, text: Tokens, empty_L: np.ndarray, ends: dict[int, End]) -> Filled:
    """A document without its empty places, which what is made of it knows nothing of."""
    kept_L = ~empty_L
    blanks = tuple(_moved(place, kept_L) for place in document.blanks)
    text = Tokens(text.tokens[kept_L], text.log_probs[kept_L], text.passes[kept_L], text.head)
    given = tuple(np.array(document.given)[kept_L].tolist())
    return Filled(document._replace(tokens=tuple(text.tokens.tolist()), given=given, blanks=blanks), text, ends)


def _moved(place: slice, kept_L: np.ndarray) -> slice:
    """Where a part of a document stands when only some of its places are kept."""
    return slice(int(kept_L[: place.start].sum()), int(kept_L[: place.stop].sum()))
