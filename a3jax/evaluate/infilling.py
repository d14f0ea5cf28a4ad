"""Ways to fill in what is missing in a program, beside `blanks.Filler`, and which of them an evaluation compares.

A blank's length is given as the truth has it, or chosen by the model; the white space around it is given or not; and models
that were trained to fill in from left to right, by tokens of their own for what is before and behind (FIM, arXiv 2207.14255),
do so.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.document import Document
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template
from a3jax.evaluate.blanks import BOTH, LEFT, Blanked, Filler, Filling, fillers
from a3jax.evaluate.options import Infilling, Models
from a3jax.generate.request import Request, fill

FIM = "FIM tokens"
LENGTHS: dict[Infilling, str] = {
    "length": "as many tokens as the truth",
    "space": "as many tokens as the truth, whose white space at both ends is given; without healing but for the last space "
    "before its first word, since tokenizers keep that with the word, and a line end with the indentation behind it",
    "chosen": "of the sizes the one of largest log-likelihood per token; of a model that ends blanks, up to its end",
    "fim": "prefix, suffix, middle behind the tokenizer's own tokens; the model ends it",
}
"""What each setting tells of the blank, for a protocol."""


class Way(NamedTuple):
    """A row of the table."""

    filler: Filler
    sizes: Range | None = None
    """Those to choose from where the length is not given; who ends a text by itself writes the largest at most."""


class Sentinels(NamedTuple):
    """Tokens behind which the parts of a text stand: what is before the blank, what is behind it, and what is in it."""

    before: str
    after: str
    middle: str


SENTINELS = (
    Sentinels("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    Sentinels("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    Sentinels("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Sentinels("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001, DeepSeek
)
"""As tokenizers have them."""


class Spaced(Filler):
    """One that is told the white space around the truth: how a line is indented, and that it ends."""

    def document(self, blanked: Blanked) -> Document:  # noqa: D102, as in `Filler`
        return super().document(self._told(blanked))

    def fill(self, blanks: Sequence[Blanked], batch: int, sizes: Range | None = None) -> list[Filling]:
        """As `Filler` does. The white space is part of what is put in."""
        found = super().fill([self._told(blanked) for blanked in blanks], batch, sizes)
        around = [white_space(blanked.truth, self.decoding.heal) for blanked in blanks]
        return [one._replace(text=before + one.text + after) for (before, after), one in zip(around, found)]

    def _told(self, blanked: Blanked) -> Blanked:
        before, after = white_space(blanked.truth, self.decoding.heal)
        truth = blanked.truth.removeprefix(before).removesuffix(after)
        return blanked._replace(before=blanked.before + before, truth=truth, after=after + blanked.after)


@dataclasses.dataclass(frozen=True)
class Writer(Filler):
    """One that writes from left to right until it ends the text. It sees the left, or with `sentinels` both sides."""

    sentinels: Sentinels | None = None

    def document(self, blanked: Blanked) -> Document:  # noqa: D102, as in `Filler`
        return self._laid_out((self._prompt(blanked), ""), blanked.truth)

    def fill(self, blanks: Sequence[Blanked], batch: int, sizes: Range | None = None) -> list[Filling]:
        """What is written behind each prompt, of the largest size at most; how likely the truth is, is not asked."""
        assert sizes is not None
        requests = []
        for blanked in blanks:
            template = Template((self._prompt(blanked), ""), (sizes.most,))
            requests.append(Request(template, self.decoding, sum(self.document(blanked).given) + sizes.most))
        return [Filling(one.blanks[0].text, 0.0, 0) for one in fill(self.model, requests, batch)]

    def _prompt(self, blanked: Blanked) -> str:
        if self.sentinels is None:
            return blanked.before
        before, after, middle = self.sentinels
        return f"{before}{blanked.before}{after}{blanked.after}{middle}"


def white_space(truth: str, healed: bool = False) -> tuple[str, str]:
    """That at its beginning and at its end; none where there is nothing else.

    The last space before the first word is left out, unless it is given back to the word by healing.
    """
    if not truth.strip():
        return "", ""
    before, after = truth[: len(truth) - len(truth.lstrip())], truth[len(truth.rstrip()) :]
    return before if healed else before.removesuffix(" "), after


def sentinels(codec: TextCodec) -> Sentinels | None:
    """Those that are tokens of a tokenizer, if it has any."""

    def are_tokens(names: Sentinels) -> bool:
        return all(codec.encode(name, inside=True) == [codec.tokenizer.token_to_id(name)] for name in names)

    return next((names for names in SENTINELS if are_tokens(names)), None)


def ways(models: Models, decoding: Decoding, settings: Sequence[Infilling], sizes: Range, tokens: int) -> dict[str, Way]:
    """The rows of a table: each setting with the model from both sides, and from the left with it and any baseline.

    `sizes` are those to choose from, and `tokens` what is written with FIM tokens at most; without such tokens there is no
    row for them. Raises `UserError` as `blanks.fillers` does.
    """
    return dict(_ways(models, decoding, settings, sizes, tokens))


def _ways(
    models: Models, decoding: Decoding, settings: Sequence[Infilling], sizes: Range, tokens: int
) -> Iterator[tuple[str, Way]]:
    both, left = fillers(models.model, models.model, decoding)
    left_only = {"": left}
    if models.baseline is not models.model:
        left_only[", baseline"] = fillers(models.model, models.baseline, decoding)[1]
    named = {BOTH: both, **{LEFT + who: filler for who, filler in left_only.items()}}
    for setting in settings:
        if setting == "chosen":  # the one place that says how a blank is filled whose length nobody knows
            yield f"{BOTH}, length chosen", Way(both, sizes)
        elif setting == "fim":
            for who, filler in left_only.items():
                if (own := sentinels(filler.model.codec)) is not None:
                    ends = dataclasses.replace(filler.decoding, ends=True)
                    yield FIM + who, Way(Writer(filler.model, ends, BOTH, own), Range(1, tokens))
        elif setting == "space":
            for name, filler in named.items():
                yield f"{name}, white space given", Way(Spaced(filler.model, filler.decoding, filler.sees))
        else:
            for name, filler in named.items():
                yield name, Way(filler)
