"""Blanks filled all together or, where their lengths are unknown, one after the other, each up to its end.

A blank of unknown length is a gap of as many places as it may have tokens. It is filled from left to right, and ends with
the model's end token, or a stop string; the places behind its end stay empty, and what follows the gap stands where it stood,
so that it can be read before the length is known (`a3jax.ordering.layout`). A model that fills in the middle (mode fim) reads
what follows first instead, and has the blank behind everything else.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from a3jax.decode.cached import Beginning
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Document
from a3jax.generate.filling import End, Observe, Tokens, end_of, fill_documents
from a3jax.generate.middle import middle_last
from a3jax.model.network import check_context
from a3jax.weights.loading import Model


class Filled(NamedTuple):
    """A document filled, without the places that stayed empty."""

    document: Document
    text: Tokens
    ends: dict[int, End]
    """Where blanks that did not fill up have their ends, by number."""


def fill_blanks(
    model: Model,
    documents: Sequence[Document],
    decodings: Sequence[Decoding],
    observe: Observe | None = None,
    open_blanks: Sequence[frozenset[int]] | None = None,
    beginning: Beginning | None = None,
) -> list[Filled]:
    """Fill a batch of documents. `open_blanks` are the numbers of the blanks of each whose lengths are unknown.

    Where there are none, a `beginning` of all documents may have been read, as `a3jax.decode.loop.decode` says.
    """
    if decodings[0].mode == "fim" or (open_blanks and any(open_blanks)):
        return _one_by_one(model, documents, decodings, observe, open_blanks or [frozenset()] * len(documents))
    filled = []
    texts = fill_documents(model, documents, decodings, observe, beginning=beginning)
    for document, decoding, text in zip(documents, decodings, texts):
        end = end_of(model, document, decoding, text)
        ends = {} if end is None else {len(document.blanks) - 1: end}
        empty_L = np.arange(len(document.tokens)) >= (len(document.tokens) if end is None else end.tokens)
        filled.append(_without_empty(document, text, empty_L, ends))
    return filled


def _one_by_one(
    model: Model,
    documents: Sequence[Document],
    decodings: Sequence[Decoding],
    observe: Observe | None,
    open_blanks: Sequence[frozenset[int]],
) -> list[Filled]:
    each = [_Filling(document) for document in documents]
    for number in range(max(len(document.blanks) for document in documents)):
        # A document that has no such blank goes along, with its last one, so that the batch stays as large.
        numbers = [min(number, len(document.blanks) - 1) for document in documents]
        how = [_of_blank(*one) for one in zip(decodings, documents, open_blanks, numbers)]
        if how[0].mode == "fim":
            staged = [one.middle_last(i, model.record.fim_tokens) for one, i in zip(each, numbers)]
            for document in staged:
                check_context(model, len(document.tokens))
            how, empty = [dataclasses.replace(decoding, mode="ar") for decoding in how], None
        else:
            staged = [one.with_blank(i) for one, i in zip(each, numbers)]
            empty = [one.empty_but(i) for one, i in zip(each, numbers)]
        for one, i, document, decoding, text in zip(
            each, numbers, staged, how, fill_documents(model, staged, how, observe, empty)
        ):
            if i == number:
                one.take(i, document, text, end_of(model, document, decoding, text))
    return [_without_empty(one.document, one.text, one.empty_L, one.ends) for one in each]


def _of_blank(decoding: Decoding, document: Document, open_blanks: frozenset[int], number: int) -> Decoding:
    """How blank `number` is filled: an open one may end, and so may the last where the text is one that may."""
    continued = decoding.ends and not open_blanks and number == len(document.blanks) - 1
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
