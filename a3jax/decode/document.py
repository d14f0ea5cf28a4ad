"""The tokens of a text with blanks: its given pieces, what stands in the blanks, and where each of them lies.

The text around blanks is given, and comes back as it was given, byte for byte. Every piece of it is tokenized by itself,
so that what stands in a blank never changes how the text beside it is read: the first as a beginning, all others as what
stands inside a text. Its last token may be given back to the blank behind it (`a3jax.data.healing`). A document begins as
`a3jax.data.tokenizer` says; where a blank is the first thing in it, with the token that stands in for a beginning, since a
model of this kind predicts no first token.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from a3jax.data.healing import Healed, Healing
from a3jax.data.tokenizer import TextCodec
from a3jax.decode.template import parse
from a3jax.errors import UserError


class Document(NamedTuple):
    """Tokens of a template with something in its blanks."""

    tokens: tuple[int, ...]
    given: tuple[bool, ...]
    blanks: tuple[slice, ...]
    """Where in `tokens` each blank stands."""
    head: int
    """So many tokens at the beginning, 0 or 1, are no text."""
    pieces: tuple[str, ...]
    """The given text: one piece more than there are blanks."""
    healed: tuple[Healed | None, ...]
    """What was given back to each blank, which its first token begins with."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each blank beside the one that was given back; 1 at least where one was."""
        lengths = [place.stop - place.start for place in self.blanks]
        return tuple(length if healed is None else max(1, length - 1) for length, healed in zip(lengths, self.healed))

    @property
    def own(self) -> int:
        """How many tokens of all blanks hold text of them, and not just what was given back."""
        alone = [
            healed is not None and self.tokens[place.start] == healed.token for place, healed in zip(self.blanks, self.healed)
        ]
        return len(self.given) - sum(self.given) - sum(alone)

    @property
    def allowed(self) -> dict[int, np.ndarray]:
        """V bool for each first token of a blank that was given back another: what may stand there."""
        return {place.start: healed.allowed_V for place, healed in zip(self.blanks, self.healed) if healed is not None}

    def written(self, number: int, tokens: Sequence[int], codec: TextCodec) -> str:
        """What the first `tokens` of a blank say, without the text that was given back."""
        inside, healed = self.blanks[number].start > self.head, self.healed[number]
        lead = "" if healed is None else codec.decode([healed.token], inside)
        return codec.decode(list(tokens), inside)[len(lead) :]

    def first(self, count: int) -> "Document":
        """Its first `count` tokens, which end in its last blank or behind it."""
        blanks = tuple(slice(place.start, min(place.stop, count)) for place in self.blanks)
        return self._replace(tokens=self.tokens[:count], given=self.given[:count], blanks=blanks)

    def parts(self, codec: TextCodec) -> "list[Part]":
        """Pieces and blanks in turn, which together are the whole text."""
        edges = [self.head, *(edge for place in self.blanks for edge in (place.start, place.stop)), len(self.tokens)]
        places = itertools.starmap(slice, itertools.pairwise(edges))
        texts = [self.pieces[0], *itertools.chain(*zip(self._filled(codec), self.pieces[1:]))]
        leads = [lead for healed in self.healed for lead in ("", lead_of(healed))] + [""]
        each = zip(texts, places, itertools.cycle((False, True)), leads)
        return [Part(text, place, filled, lead) for text, place, filled, lead in each]

    def _filled(self, codec: TextCodec) -> list[str]:
        """What each blank adds to the text. A character that is cut between blanks that touch goes with the latter."""
        texts: list[str] = []
        first, before = 0, ""  # of the blanks that touch this one
        for number, (piece, place) in enumerate(zip(self.pieces, self.blanks)):
            if piece:
                first, before = number, ""
            whole = self.written(first, self.tokens[self.blanks[first].start : place.stop], codec)
            same = alike(before, whole)
            left = same
            for i in range(first, len(texts)):  # what they say is taken back from where this one changes it
                texts[i] = texts[i][:left]
                left -= len(texts[i])
            texts.append(whole[same:])
            before = whole
        return texts


class Part(NamedTuple):
    """A piece or a blank of a document."""

    text: str
    place: slice
    """Its tokens."""
    filled: bool
    """Whether it is a blank."""
    lead: str = ""
    """Of a blank: the end of the text before it, which its first token begins with."""


def lay_out(
    pieces: Sequence[str],
    blanks: Sequence[str | Sequence[int]],
    codec: TextCodec,
    healing: Healing | None = None,
    whole: bool = False,
) -> Document:
    """Tokens of `pieces` with those of `blanks` between them, each of them tokens or text, behind what documents begin with.

    With `healing` pieces give back their last tokens, where something stands before those: a blank of tokens then has one
    more place, its first, and a blank of text the tokens that it has behind its piece.

    Nothing is put before a text that is `whole`. Raises `UserError` if the document would begin with a blank, and there is
    no token to stand before it.
    """
    first = codec.encode(pieces[0])
    head = codec.start if first or not blanks else codec.stand_in
    head = None if whole and first else head
    if not first and blanks and head is None:
        raise UserError("the text begins with a blank, and this model has no token to stand before it; give some text first")
    tokens = [token for token in (head,) if token is not None]
    begin = len(tokens)
    tokens += first
    given, places, healed = [True] * len(tokens), [], []
    before = _Piece(pieces[0], first, inside=False)
    for blank, piece in zip(blanks, pieces[1:]):
        filled = codec.encode(blank, inside=len(tokens) > begin) if isinstance(blank, str) else list(blank)
        back = healing.of(*before) if healing is not None and filled else None
        rest = len(tokens) - len(before.tokens)
        if back is not None and not (rest or back.kept):
            back = None  # something must stand before the blank
        if back is not None:
            tokens[rest:], given[rest:] = back.kept, [True] * len(back.kept)
            natural = _behind(before, back.kept, blank, codec) if isinstance(blank, str) else []
            filled = natural if natural and back.allowed_V[natural[0]] else [back.token, *filled]
        places.append(slice(len(tokens), len(tokens) + len(filled)))
        healed.append(back)
        tokens += filled
        inside = len(tokens) > begin
        before = _Piece(piece, codec.encode(piece, inside), inside)
        tokens += before.tokens
        given += [False] * len(filled) + [True] * len(before.tokens)
    return Document(tuple(tokens), tuple(given), tuple(places), begin, tuple(pieces), tuple(healed))


class _Piece(NamedTuple):
    text: str
    tokens: list[int]
    inside: bool


def _behind(piece: _Piece, kept: Sequence[int], text: str, codec: TextCodec) -> list[int]:
    """The tokens of a piece and text behind those that are kept; none where the text changes these."""
    tokens = codec.encode(piece.text + text, piece.inside)
    return tokens[len(kept) :] if tokens[: len(kept)] == [*kept] else []


def with_blanks(text: str, blanks: Sequence[str], codec: TextCodec, healing: Healing | None = None) -> Document:
    """The tokens of a template with texts in its blanks, as `lay_out` lays them out; their sizes do not matter.

    Raises `UserError` for another number of texts.
    """
    template = parse(text)
    if len(blanks) != len(template.sizes):
        raise UserError(f"the template has {len(template.sizes)} blanks, and {len(blanks)} texts are given for them")
    return lay_out(template.pieces, blanks, codec, healing)


def lead_of(healed: Healed | None) -> str:
    """The text that was given back to a blank."""
    return "" if healed is None else healed.text


def alike(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
