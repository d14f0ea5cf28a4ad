"""The text of each token of a text: what it adds to those before it."""

import itertools
from collections.abc import Sequence

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.document import Part


def spell(codec: TextCodec, tokens: Sequence[int], inside: bool, text: str | None = None) -> list[str]:
    """The text of `tokens`, in as many pieces. A character of several tokens stands in the one that completes it.

    They stand at the beginning of a text or `inside` it. `text` is theirs where it is known, as it is of what was given:
    a tokenizer may have changed it, and so joined pieces are that, and not what the tokens would be decoded to.
    """
    decoded = codec.decode(list(tokens), inside)
    text = decoded if text is None else text
    pieces: list[str] = []
    at = len(text) - len(decoded) if text.endswith(decoded) else 0  # spaces that the tokenizer took for its own
    lead = text[:at]
    begin = read = taken = 0  # only those since `begin` are decoded again: known up to `read`, and `taken` characters on
    for i in range(len(tokens)):
        within = inside or begin > 0
        grown = codec.decode(list(tokens[begin : i + 1]), within)
        fresh = grown[len(codec.decode(list(tokens[begin:read]), within)) + taken :]
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(text[at : at + len(fresh)], fresh))
        piece = "".join(letter for letter, _ in same)
        if piece and piece == fresh:
            begin, read, taken = read, i + 1, 0
        else:
            taken += len(piece)
        at += len(piece)
        pieces.append(piece)
    if not pieces:
        return []
    pieces[0] = lead + pieces[0]
    return pieces[:-1] + [pieces[-1] + text[at:]]


def spelled(codec: TextCodec, tokens: Sequence[int], parts: Sequence[Part]) -> list[str]:
    """The text of each token of a document, "" for one that is no text. Joined they are its parts' text.

    A token behind a stop string, which is cut off, adds none. Text that was given back is that of the blank's first token.
    """
    head = parts[0].place.start
    pieces = [""] * head
    shown = (part for part in parts if part.text or part.place.stop > part.place.start)
    runs = [list(run) for _, run in itertools.groupby(shown, _is_filled)]
    leads = [run[0].lead for run in runs] + [""]
    for touching, lead, given_back in zip(runs, leads, leads[1:]):
        place = slice(touching[0].place.start, touching[-1].place.stop)
        text = lead + "".join(part.text for part in touching).removesuffix(given_back)
        pieces += _up_to(text, spell(codec, tokens[place], place.start > head, None if touching[0].filled else text))
    return pieces


def _is_filled(part: Part) -> bool:
    return part.filled


def _up_to(text: str, pieces: Sequence[str]) -> list[str]:
    """As much of each piece as `text` has."""
    edges = [min(edge, len(text)) for edge in itertools.accumulate(map(len, pieces), initial=0)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]
