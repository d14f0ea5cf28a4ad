"""A document with one blank as a model of objective fim was trained to read it: what is to be filled in comes last."""

from collections.abc import Sequence

from a3jax.decode.document import Document


def middle_last(document: Document, tokens: Sequence[int], number: int, marks: Sequence[int]) -> Document:
    """Blank `number` of a document behind all text around it: start, prefix, suffix, and the blank as it is (PSM).

    `tokens` are those of the document with all blanks before this one filled; what stands from the next blank on is left out.
    `marks` are the tokens before prefix, suffix and middle.
    """
    blank = document.blanks[number]
    end = document.blanks[number + 1].start if number + 1 < len(document.blanks) else len(tokens)
    before, behind, middle = marks
    known = [
        *tokens[: document.head],
        before,
        *tokens[document.head : blank.start],
        behind,
        *tokens[blank.stop : end],
        middle,
    ]
    size = blank.stop - blank.start
    return Document(
        tokens=(*known, *tokens[blank]),
        given=(*[True] * len(known), *[False] * size),
        blanks=(slice(len(known), len(known) + size),),
        head=document.head,
        pieces=("", ""),
        healed=(document.healed[number],),
    )
