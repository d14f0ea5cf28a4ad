"""Text with blanks: `"def area(r): [[8]] * r"` holds one blank of eight tokens, `[[4-12]]` one of four to twelve.

`[[..32]]` is one of unknown length, with room for 32.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

from a3jax.errors import UserError

LARGEST = 1_000_000
"""A blank is smaller than this many tokens; anything else is a slip of the keyboard."""

# One word without commas between double brackets; a backslash before it makes it plain text. Lists such as [[1, 2]] and
# shell tests such as [[ -f x ]] are plain text as they stand.
_BLANK = re.compile(r"(?P<escape>\\?)\[\[\s*+(?P<size>[^\s\[\],]*+)\s*+\]\]")


@dataclass(frozen=True)
class Range:
    """A blank's size where it is to be chosen."""

    least: int
    most: int


@dataclass(frozen=True)
class Open:
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
            most = size.most if isinstance(size, Range | Open) else size
            least = size.least if isinstance(size, Range) else most
            if not (isinstance(least, Integral) and isinstance(most, Integral) and 1 <= least <= most):
                raise UserError(
                    f"a blank's size is {size}; it must be a whole number of at least 1, a Range of such, or an Open"
                )


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
