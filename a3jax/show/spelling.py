"""The text of each token of a text: what it adds to those before it."""

import itertools
from collections.abc import Sequence

from a3jax.data.tokenizer import TextCodec
from a3jax.infilling import Infilled


def spell(codec: TextCodec, tokens: Sequence[int]) -> list[str]:
    """The text of `tokens`, in as many pieces. A character of several tokens stands in the one that completes it."""
    text = codec.decode(list(tokens))
    pieces: list[str] = []
    at = begin = read = taken = 0  # only those since `begin` are decoded again: known up to `read`, and `taken` characters on
    for i in range(len(tokens)):
        grown = codec.decode(list(tokens[begin : i + 1]))
        fresh = grown[len(codec.decode(list(tokens[begin:read]))) + taken :]
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(text[at : at + len(fresh)], fresh))
        piece = "".join(letter for letter, _ in same)
        if piece and piece == fresh:
            begin, read, taken = read, i + 1, 0
        else:
            taken += len(piece)
        at += len(piece)
        pieces.append(piece)
    return pieces[:-1] + [pieces[-1] + text[at:]] if pieces else []


def spelled(codec: TextCodec, filled: Infilled) -> list[str]:
    """The text of each token of a filled document, "" for its start token. Joined they are its text."""
    first = 0 if codec.start is None else 1
    pieces = [""] * first + spell(codec, filled.tokens[first:])
    left = len(filled.text)  # a stop string is cut off
    for i, piece in enumerate(pieces):
        pieces[i] = piece[:left]
        left -= len(pieces[i])
    return pieces
