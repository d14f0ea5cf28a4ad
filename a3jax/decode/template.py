"""Text with blanks: `"def area(r): [[8]] * r"` holds one blank of eight tokens, `[[4-12]]` one of four to twelve.

The text around blanks is given. Every piece of it is tokenized by itself, so that what stands in a blank never changes
how the text beside it is read. A document begins with the model's start token where it has one; without one, its first
token can only be given, since a model of this kind predicts no first token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

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


@dataclass(frozen=True)
class Template:
    """The given pieces of text, of which there is one more than blanks, and the blanks' sizes in tokens."""

    pieces: tuple[str, ...]
    sizes: tuple[int | Range, ...]

    def __post_init__(self) -> None:
        """Raises `UserError` for anything else."""
        if len(self.pieces) != len(self.sizes) + 1:
            raise UserError(
                f"a template of {len(self.sizes)} blanks has {len(self.pieces)} pieces; give one more than blanks"
            )
        for size in self.sizes:
            least, most = size if isinstance(size, Range) else (size, size)
            if not (isinstance(least, Integral) and isinstance(most, Integral) and 1 <= least <= most):
                raise UserError(f"a blank's size is {size}; it must be a whole number of at least 1, or a Range of such")


class Document(NamedTuple):
    """Tokens of a template with something in its blanks."""

    tokens: tuple[int, ...]
    given: tuple[bool, ...]
    blanks: tuple[slice, ...]
    """Where in `tokens` each blank stands."""


def parse(text: str) -> Template:
    r"""Cut `text` at its blanks, each `[[n]]` with n tokens or `[[n-m]]` with n to m. `\[[n]]` is plain text.

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


def lay_out(pieces: Sequence[str], blanks: Sequence[Sequence[int]], codec: TextCodec) -> Document:
    """Tokens of `pieces` with those of `blanks` between them, the start token first.

    Raises `UserError` if the document would begin with a blank, for want of a start token and a first piece.
    """
    tokens = [] if codec.start is None else [codec.start]
    given, places = [True] * len(tokens), []
    for i, piece in enumerate(pieces):
        if i > 0:
            places.append(slice(len(tokens), len(tokens) + len(blanks[i - 1])))
            tokens += blanks[i - 1]
            given += [False] * len(blanks[i - 1])
        ids = codec.encode(piece)
        tokens += ids
        given += [True] * len(ids)
        if i == 0 and not tokens:
            raise UserError("the text begins with a blank, and this model has no start token; begin with some given text")
    return Document(tuple(tokens), tuple(given), tuple(places))


def with_blanks(text: str, blanks: Sequence[str], codec: TextCodec) -> Document:
    """The tokens of a template with texts in its blanks, whose sizes do not matter. Raises `UserError` for another number."""
    template = parse(text)
    if len(blanks) != len(template.sizes):
        raise UserError(f"the template has {len(template.sizes)} blanks, and {len(blanks)} texts are given for them")
    return lay_out(template.pieces, [codec.encode(blank) for blank in blanks], codec)


def _size(blank: str, words: str) -> int | Range:
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
