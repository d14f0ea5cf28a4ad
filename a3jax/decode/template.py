"""Text with blanks: `"def area(r): [[8]] * r"` holds one blank of eight tokens, `[[4-12]]` one of four to twelve.

`[[..32]]` is one of unknown length, with room for 32.

The text around blanks is given, and comes back as it was given, byte for byte. Every piece of it is tokenized by itself,
so that what stands in a blank never changes how the text beside it is read: the first as a beginning, all others as what
stands inside a text. Its last token may be given back to the blank behind it (`a3jax.data.healing`). A document begins as
`a3jax.data.tokenizer` says; where a blank is the first thing in it, with the token that stands in for a beginning, since a
model of this kind predicts no first token.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np

from a3jax.data.healing import Healed, Healing
from a3jax.data.tokenizer import TextCodec
from a3jax.errors import UserError

LARGEST = 1_000_000
"""A blank is smaller than this many tokens; anything else is a slip of the keyboard."""

# One word without commas between double brackets; a backslash before it makes it plain text. Lists such as [[1, 2]] and
# shell tests such as [[ -f x ]] are plain text as they stand.
_BLANK = re.compile(r"(?P<escape>\\?)\[\[\s*+(?P<size>[^\s\[\],]*+)\s*+\]\]")


class Range(NamedTuple):
    """A blank's size where it is to be chosen."""

    least: int
    most: int


class Open(NamedTuple):
    """A blank's size where nothing is known of it but how large it may be: its end is found while it is filled."""

    most: int


Size = int | Range | Open


def has_open(sizes: Iterable[Size]) -> bool:
    """Whether a blank's length is unknown."""
    return any(isinstance(size, Open) for size in sizes)


@dataclass(frozen=True)
class Template:
    """The given pieces of text, of which there is one more than blanks, and the blanks' sizes in tokens."""

    pieces: tuple[str, ...]
    sizes: tuple[Size, ...]
    whole: bool = False
    """Whether the text has its own beginning, as a chat that a template wrote, and nothing is put before it."""

    def __post_init__(self) -> None:
        """Raises `UserError` for anything else."""
        if len(self.pieces) != len(self.sizes) + 1:
            raise UserError(
                f"a template of {len(self.sizes)} blanks has {len(self.pieces)} pieces; give one more than blanks"
            )
        if not self.sizes:
            raise UserError("a template has no blank; give one")
        whole = tuple(int(size) if isinstance(size, Integral) and not isinstance(size, bool) else size for size in self.sizes)
        object.__setattr__(self, "sizes", whole)
        for size in self.sizes:
            least, most = size if isinstance(size, Range) else (1, size.most) if isinstance(size, Open) else (size, size)
            if not (isinstance(least, Integral) and isinstance(most, Integral) and 1 <= least <= most):
                raise UserError(
                    f"a blank's size is {size}; it must be a whole number of at least 1, a Range of such, or an Open"
                )


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


def parse(text: str) -> Template:
    r"""Cut `text` at its blanks: `[[n]]` with n tokens, `[[n-m]]` with n to m, `[[..n]]` with up to n. `\[[n]]` is text.

    Raises `UserError` if there is no blank, or one whose size is not a whole number from 1 up to `LARGEST`.
    """
    pieces, sizes, piece, last = [], [], "", 0
    for match in _BLANK.finditer(text):
        piece += text[last : match.start()]
        last = match.end()
        if match["escape"]:
            piece += match[0][1:]
        else:
            sizes.append(_size(match[0], match["size"]))
            pieces.append(piece)
            piece = ""
    if not sizes:
        raise UserError("the text has no blank; write [[8]] where eight tokens are to be filled in")
    return Template((*pieces, piece + text[last:]), tuple(sizes))


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


def _size(blank: str, words: str) -> Size:
    if words.startswith(".."):
        return Open(_number(blank, words[2:]))
    least, dash, most = words.partition("-")
    if not dash:
        return _number(blank, words)
    size = Range(_number(blank, least), _number(blank, most))
    if size.least > size.most:
        raise UserError(f"{blank} is no blank; write the smaller size first, as in [[{size.most}-{size.least}]]")
    return size.least if size.least == size.most else size


def _number(blank: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise UserError(f"{blank} is no blank; write [[8]] for eight tokens, or \\{blank} if it is part of the text")
    significant = digits.lstrip("0")
    if not significant:
        raise UserError(f"{blank} is a blank of no tokens; its size must be at least 1")
    if len(significant) >= len(str(LARGEST)):
        raise UserError(f"blank of {significant[:20]} tokens; its size must be below {LARGEST}")
    return int(significant)
