"""Token healing: a blank begins with the last token of the text before it, and the model may write a longer one there.

Tokenizers read white space with what follows it: in SmolLM2's, Llama 3's and Qwen's a line end and an indentation are one
token, and so are a space and a word. Text that ends in such white space, tokenized by itself, ends in a token behind which
texts hardly ever go on as this one is to. Its last token is therefore given back: it is no longer given, and the blank's
first token is one of those whose bytes begin with its bytes, itself among them. What the blank adds to the text comes behind
these bytes. (The name and the idea are Scott Lundberg's, in guidance.)

Of an indentation it is the last character alone. Behind a line end and four spaces, which are one token by themselves, no
token that begins with these five is a word; in a text the word has the last space, and the four characters before it are a
token. Which characters a tokenizer cuts so is found by writing a letter behind them.

A token is left where it is if no longer one of plain text begins with it, if it is not one of plain text itself, and if the
text does not end in what it says: in a character of several tokens, or one that the tokenizer has changed.

On the right nothing is to be healed where the text behind a blank begins with white space: that is where tokens begin.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import decoders

from a3jax.data.tokenizer import TextCodec


class Healed(NamedTuple):
    """What was given back to a blank."""

    kept: tuple[int, ...]
    """Tokens of the text that are still given."""
    token: int
    """The one that was given back, or that says what was."""
    text: str
    """What it says: the end of the text before the blank."""
    allowed_V: np.ndarray
    """V bool: tokens that may take its place."""


class Healing:
    """What a tokenizer's texts give back to a blank behind them."""

    def __init__(self, codec: TextCodec, fillable_V: np.ndarray):
        """`fillable` marks the tokens of plain text."""
        self._codec, self._vocab = codec, len(fillable_V)
        self._bytes = {token: spelling for token, spelling in _spellings(codec) if spelling and fillable_V[token]}
        self._tokens = sorted(self._bytes, key=lambda token: self._bytes[token])
        self._sorted = [self._bytes[token] for token in self._tokens]
        self._longest = max(map(len, self._sorted), default=0)
        self._space = {own.decode(): token for token, own in self._bytes.items() if own in (b" ", b"\t")}
        self._found: dict[int, np.ndarray | None] = {}

    def of(self, piece: str, tokens: Sequence[int], inside: bool) -> Healed | None:
        """What `piece`, of these `tokens`, gives back; they stand at the beginning of a text or `inside` it."""
        if not tokens:
            return None
        kept, token = self._cut(piece, tokens, inside)
        if (allowed_V := self._allowed(token)) is None:
            return None
        text = self._codec.decode([token], inside or len(kept) > 0)
        return Healed(tuple(kept), token, text, allowed_V) if text and piece.endswith(text) else None

    def _cut(self, piece: str, tokens: Sequence[int], inside: bool) -> tuple[Sequence[int], int]:
        """The tokens of a piece but for its last one, or for a last space that belongs to the word behind it."""
        if (space := self._space.get(piece[-1])) is not None:
            shorter = self._codec.encode(piece[:-1], inside)
            if self._codec.encode(piece + "a", inside)[: len(shorter)] == shorter:
                return shorter, space
        return tokens[:-1], tokens[-1]

    def _allowed(self, token: int) -> np.ndarray | None:
        """Tokens that begin as this one does; None where it is the longest of them."""
        if token not in self._found:
            self._found[token] = self._search(self._bytes[token]) if token in self._bytes else None
        return self._found[token]

    def _search(self, spelling: bytes) -> np.ndarray | None:
        first = bisect.bisect_left(self._sorted, spelling)
        last = bisect.bisect_right(self._sorted, spelling + b"\xff" * self._longest)
        if self._sorted[last - 1] == spelling:
            return None
        allowed_V = np.zeros(self._vocab, bool)
        allowed_V[self._tokens[first:last]] = True
        return allowed_V


def _spellings(codec: TextCodec) -> Iterator[tuple[int, bytes]]:
    """The bytes of tokens, as far as they are known by themselves."""
    added = codec.tokenizer.get_added_tokens_decoder()
    letters = _letters() if isinstance(codec.tokenizer.decoder, decoders.ByteLevel) else {}
    numbers = str.maketrans(letters)
    for name, token in codec.tokenizer.get_vocab(with_added_tokens=True).items():
        if token not in added and letters.keys() >= set(name):
            yield token, name.translate(numbers).encode("latin-1")
        elif token not in codec.single_bytes:  # of which SentencePiece decodes several together, all or none
            text = codec.decode([token], inside=True)
            if "\ufffd" not in text:
                yield token, text.encode()


def _letters() -> dict[str, int]:
    """The byte that a letter stands for in byte-level tokens: its own where that prints, and those left out from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in own)
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}
