"""One part of a text blanked: filled in by a model that sees both sides, and by one that goes on from the left alone.

Both get the same number of tokens, and both are asked how likely the truth is. What stands before the blank gives back its
last token, and the truth has the tokens that it has behind the rest; what stands behind the blank is tokenized apart. Without
healing all three are, so that the number of tokens tells nothing of how the truth joins its neighbours.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from a3jax.decode.document import Document, lay_out
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Size, Template
from a3jax.errors import UserError
from a3jax.evaluate.task import Item
from a3jax.generate.request import Request, fill
from a3jax.generate.text_likelihood import blanks_log_likelihoods
from a3jax.weights.loading import Model

BOTH, LEFT = "both sides", "left only"


class Blanked(NamedTuple):
    """A text whose middle is to be found."""

    before: str
    truth: str
    after: str
    fact: str | None = None
    """A word of the truth that only what is behind the blank tells, where one is known."""


class Filling(NamedTuple):
    """What was put in a blank."""

    text: str
    nats: float
    """Of the truth, in nats."""
    tokens: int
    """Of the truth."""


@dataclasses.dataclass(frozen=True)
class Filler:
    """A model, and what it sees."""

    model: Model
    decoding: Decoding
    sees: str

    def document(self, blanked: Blanked) -> Document:
        """The tokens of what is seen, with the truth in its place. Raises `UserError` if nothing stands before it."""
        return self._laid_out((blanked.before, blanked.after if self.sees == BOTH else ""), blanked.truth)

    def _laid_out(self, pieces: Sequence[str], truth: str) -> Document:
        return lay_out(pieces, [truth], self.model.codec, self.model.healing if self.decoding.heal else None)

    @property
    def ends_blanks(self) -> bool:
        """Whether it fills a blank whose length is not told up to an end, and tries no sizes."""
        return self.sees == BOTH and self.model.record.blanks_end and self.decoding.fills_to_ends

    def fill(self, blanks: Sequence[Blanked], batch: int, sizes: Range | None = None) -> list[Filling]:
        """Fill each blank with as many tokens as the truth has, or as many of `sizes` as the model likes best.

        A `batch` is filled up, so that it is compiled once; where sizes are tried, which is a batch itself, it is one text. A
        model that knows the ends of blanks tries none, and fills up to an end.

        From the left alone there is no telling what fits best: the largest size is taken.
        """
        unknown: Size | None = sizes
        if sizes is not None and self.sees == LEFT:
            unknown = sizes.most
        elif sizes is not None and self.ends_blanks:
            unknown = Open(sizes.most)
        documents = [self.document(blanked) for blanked in blanks]
        requests = []
        for blanked, document in zip(blanks, documents):
            (length,) = document.sizes
            size = length if unknown is None else unknown
            most = size if isinstance(size, int) else size.most
            template = Template((blanked.before, blanked.after if self.sees == BOTH else ""), (size,))
            requests.append(Request(template, self.decoding, len(document.tokens) - length + most))
        filled = fill(self.model, requests, 1 if isinstance(unknown, Range) else batch)
        scores = blanks_log_likelihoods(self.model, documents, self.decoding)
        return [
            Filling(one.blanks[0].text, -score.total, document.own) for one, score, document in zip(filled, scores, documents)
        ]


def fillers(model: Model, baseline: Model, decoding: Decoding) -> tuple[Filler, Filler]:
    """The model that sees both sides, decoding as is asked, and the baseline from left to right, choosing tokens alike.

    Raises `UserError` for a decoding of texts that may end.
    """
    if decoding.ends or decoding.stop:
        raise UserError("blanks that are evaluated have their length; leave --ends and --stop out")
    names = ("seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "heal")
    plain = Decoding(mode="ar", **{name: getattr(decoding, name) for name in names})
    return Filler(model, decoding, BOTH), Filler(baseline, plain, LEFT)


def fitting(
    named: Sequence[tuple[str, Blanked]], fillers: Sequence[Filler], window: int, left_out: Counter[str], most: int = 0
) -> list[Item]:
    """Items of the blanks that fit: those that are longer than `window` tokens are counted, and so are empty ones.

    `most` is the largest size of a blank where it is not the truth's.
    """
    items = []
    for name, blanked in named:
        documents = [filler.document(blanked) for filler in fillers]
        givens = [sum(document.given) + len(document.allowed) for document in documents]
        marks = [3 * (filler.decoding.mode == "fim") for filler in fillers]
        lengths = [max(len(document.tokens), known + most) + more for document, known, more in zip(documents, givens, marks)]
        limits = [min(window, filler.model.config.context) for filler in fillers]
        if any(all(document.given) for document in documents):
            left_out["empty blank"] += 1
        elif any(length > limit for length, limit in zip(lengths, limits)):
            left_out[f"longer than {min(limits)} tokens"] += 1
        else:
            items.append(Item(name, max(lengths), blanked))
    return items


def parse_sizes(words: str) -> Range:
    """The sizes that `--sizes` names. Raises `UserError` for anything else."""
    least, _, most = words.partition("-")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) < int(most) <= 4096):
        raise UserError(f"--sizes is '{words}'; write the smallest and the largest number of tokens, such as 4-20")
    return Range(int(least), int(most))
