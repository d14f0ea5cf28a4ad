"""Filling the blanks of texts: `a3jax.infill` and its relatives.

import a3jax

model = a3jax.load("my-model")
filled = a3jax.infill(model, "def area(r): [[8]] * r", order="ar")
print(filled.text)
print(a3jax.log_likelihood(model, filled.text).total)
"""

import dataclasses
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from a3jax.decode.document import Document, Part
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Template, parse
from a3jax.errors import UserError, check_list
from a3jax.files.reading import check_text
from a3jax.files.strict import nearest
from a3jax.generate.filling import Filling, Observe, check_ends, closed, document_of, ends_blanks
from a3jax.generate.lengths import with_lengths
from a3jax.generate.objective import check_mode
from a3jax.generate.one_by_one import Filled, blanks_filled, side_by_side
from a3jax.generate.revision import revised
from a3jax.likelihood.restriction import Allowed
from a3jax.weights.loading import Model


@dataclass(frozen=True)
class Blank:
    """What was filled into one blank."""

    text: str
    """Its tokens alone, decoded; a character that is cut at the blank's edge shows as the replacement character."""
    tokens: tuple[int, ...]
    """The first may begin with the end of the text before the blank (`Decoding.heal`), which `text` does not."""
    log_prob: float
    """Nats, under the model's own distribution in the order of decoding; after a revision, from left to right.

    It is the probability of drawing the blank only at temperature 1, without filters, penalty and revision, and in mode
    dynamic not with certainty `confidence` (`a3jax.decode.dynamic`).
    """


@dataclass(frozen=True)
class Infilled:
    """A template with its blanks filled."""

    text: str
    """The whole text: what was given as it was given, with what was filled in between."""
    blanks: tuple[Blank, ...]
    forwards: int
    """Passes through the network until the last token was decided."""
    seconds: float
    """Wall time of the batch, compilation included where this was the first of its size."""
    parts: tuple[Part, ...]
    """Pieces and blanks in turn; a character cut between two blanks goes with the second."""
    tokens: tuple[int, ...]
    """Of the whole document, what stands before its text included."""
    given: tuple[bool, ...]
    """Which of them were given."""
    log_probs: tuple[float, ...]
    """Of each token in nats, as in `Blank.log_prob`; 0 for given ones."""
    passes: tuple[int, ...]
    """The pass that decided each token, from 1; 0 for given ones."""
    finished: str
    """ "length" where every blank was filled to its size, "stop" where one ended before."""
    allowed: Allowed = field(default_factory=dict, compare=False, repr=False)
    """V bool for the first token of each blank that the text before it gave back its last token (`Decoding.heal`): what could
    stand there."""

    @property
    def pieces(self) -> tuple[tuple[str, bool], ...]:
        """`text` in pieces, and whether each was filled in."""
        return tuple((part.text, part.filled) for part in self.parts)

    @property
    def places(self) -> tuple[slice, ...]:
        """Where in `tokens` each of `pieces` stands; before the first are the tokens that are no text."""
        return tuple(part.place for part in self.parts)

    @property
    def log_prob(self) -> float:
        """Of all blanks together, in nats."""
        return sum(blank.log_prob for blank in self.blanks)

    def _repr_html_(self) -> str:
        """In a notebook: the text, what was filled in on a ground of colour that suits light and dark pages."""
        mark = '<mark style="background: #2ea04355; color: inherit">{}</mark>'
        shown = "".join(mark.format(html.escape(text)) if filled else html.escape(text) for text, filled in self.pieces)
        return f'<pre style="white-space: pre-wrap">{shown}</pre>'


def infill(model: Model, template: str | Template, decoding: Decoding | None = None, **changes: Any) -> Infilled:
    r"""Fill the blanks of a template: `[[8]]` stands for eight tokens, `[[4-12]]` for four to twelve, `\[[8]]` for itself.

    `[[..32]]` stands for as many tokens as the text wants, with room for 32: a model that was trained on such blanks fills
    them up to their ends, any other is given every size from 1 to 32 and takes the most probable one.

    `changes` are fields of `Decoding`, such as `order="random_4"`, `mode="speculative"`, `temperature=0.8`, `seed=1`. All
    blanks share one order, and the text on both sides of each is seen while it is filled.

    Raises `UserError` for a template without a blank, one that is longer than the model's context, or a bad value.
    """
    return infill_batch(model, [template], [_changed(decoding or Decoding(), changes)])[0]


def infill_batch(
    model: Model,
    templates: Sequence[str | Template],
    decoding: Decoding | Sequence[Decoding] | None = None,
    observe: Observe | None = None,
    **changes: Any,
) -> list[Infilled]:
    """Fill several templates at once; the same one n times gives n samples. See `infill`.

    Template i uses seed + i, so that its result does not depend on the others. Or give a `Decoding` for each; they must
    have their `program` in common. Programs are compiled for each number of templates; keep it the same.

    `observe` is called after every pass.
    """
    begin = time.perf_counter()
    check_list("templates", templates)
    if not templates:
        raise UserError("no template is given; give at least one")
    for template in templates:
        if not isinstance(template, str | Template):
            raise UserError(f"a template is {template!r}; it must be a text, or a Template")
        for piece in (template,) if isinstance(template, str) else template.pieces:
            check_text("template", piece)
    decodings = _each(decoding, len(templates), changes)
    parsed = [parse(template) if isinstance(template, str) else template for template in templates]
    sized = [_sized(model, *one) for one in zip(parsed, decodings)]
    decodings = [decoding for _, decoding, _ in sized]
    filled = side_by_side(model, [blanks_filled(model, *one) for one in sized], observe)
    if decodings[0].revise:
        texts = revised(model, [one.document for one in filled], decodings, [one.text for one in filled], observe)
        filled = [one._replace(text=text) for one, text in zip(filled, texts)]
    seconds = time.perf_counter() - begin
    return [_infilled(model, one, seconds) for one in filled]


def filling(model: Model, template: Template, decoding: Decoding) -> Filling[Infilled]:
    """Fill one template in steps that others make, as `infill` does. Sizes are chosen before the first step, and
    revision comes after the last."""
    begin = time.perf_counter()
    document, decoding, open_blanks = _sized(model, template, decoding)
    filled = yield from blanks_filled(model, document, decoding, open_blanks)
    if decoding.revise:
        filled = filled._replace(text=revised(model, [filled.document], [decoding], [filled.text], None)[0])
    return _infilled(model, filled, time.perf_counter() - begin)


def _sized(model: Model, template: Template, decoding: Decoding) -> tuple[Document, Decoding, frozenset[int]]:
    """The document of a template, whose sizes are chosen where they are to be, how to fill it, and which blanks are open.

    Raises `UserError` where it cannot be filled, or not so.
    """
    check_mode(model, decoding)
    if decoding.mode == "block_diffusion" and not decoding.block:
        decoding = dataclasses.replace(decoding, block=model.record.mask_block or 0)
    check_ends(model, template, decoding)
    if not ends_blanks(model, decoding):
        if isinstance(template.sizes[-1], Open):
            decoding = dataclasses.replace(decoding, ends=False)
        template = closed(template)
    sized = with_lengths(model, template, decoding)
    open_blanks = frozenset(i for i, size in enumerate(sized.sizes) if isinstance(size, Open))
    return document_of(model, sized, decoding.heal), decoding, open_blanks


def complete(
    model: Model, prompts: Sequence[str], tokens: int = 128, observe: Observe | None = None, **changes: Any
) -> list[Infilled]:
    """Continue prompts by up to `tokens` tokens, to the model's end token or a stop string. See `infill_batch`."""
    check_list("prompts", prompts)
    templates = [Template((prompt, ""), (tokens,)) for prompt in prompts]
    return infill_batch(model, templates, observe=observe, **{"ends": True, **changes})


def _each(decoding: Decoding | Sequence[Decoding] | None, count: int, changes: dict[str, Any]) -> list[Decoding]:
    if decoding is None or isinstance(decoding, Decoding):
        one = _changed(decoding or Decoding(), changes)
        return [dataclasses.replace(one, seed=one.seed + i) for i in range(count)]
    decodings = [_changed(one, changes) for one in decoding]
    if len(decodings) != count:
        raise UserError(f"{count} templates but {len(decodings)} decodings; give one for each")
    if len({one.program for one in decodings}) > 1:
        raise UserError("the decodings of one batch differ in mode, group size, or another choice they must share")
    return decodings


def _changed(decoding: Decoding, changes: Mapping[str, Any]) -> Decoding:
    if not isinstance(decoding, Decoding):
        raise UserError(f"a decoding is {decoding!r}; it must be an a3jax.Decoding")
    known = [field.name for field in dataclasses.fields(Decoding)]
    for name in changes:
        if name not in known:
            raise UserError(f"decoding has no '{name}'{nearest(name, known)}")
    return dataclasses.replace(decoding, **changes)


def _infilled(model: Model, filled: Filled, seconds: float) -> Infilled:
    document, text, ends = filled
    tokens, log_probs, passes = (tuple(x.tolist()) for x in (text.tokens, text.log_probs, text.passes))
    document = document._replace(tokens=tokens)
    blanks = []
    for number, place in enumerate(document.blanks):
        written = document.written(number, tokens[place], model.codec)
        blanks.append(Blank(written, tokens[place], float(np.sum(log_probs[place], dtype=np.float64))))
    parts = document.parts(model.codec)
    for number, end in ends.items():  # a stop string is no part of the text
        blank, part = blanks[number], 2 * number + 1
        cut = len(blank.text) - end.characters
        blanks[number] = dataclasses.replace(blank, text=blank.text[: end.characters])
        parts[part] = parts[part]._replace(text=parts[part].text[: len(parts[part].text) - cut])
    return Infilled(
        text="".join(part.text for part in parts),
        blanks=tuple(blanks),
        forwards=max(passes),
        seconds=seconds,
        parts=tuple(parts),
        tokens=tokens,
        given=document.given,
        log_probs=log_probs,
        passes=passes,
        finished="stop" if ends else "length",
        allowed=document.allowed,
    )
