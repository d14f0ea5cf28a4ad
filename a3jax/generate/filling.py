"""A batch of documents whose blanks have their sizes: filled together, each blank to its size or to its end."""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from a3jax.decode import loop
from a3jax.decode.cached import Beginning, Plan, plan
from a3jax.decode.document import Document, lay_out, lead_of
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Template, has_open
from a3jax.devices.mesh import filled_up
from a3jax.errors import UserError
from a3jax.model.network import check_context
from a3jax.weights.loading import Model


class Tokens(NamedTuple):
    """A document filled, or on its way. One entry per token."""

    tokens: np.ndarray
    log_probs: np.ndarray
    passes: np.ndarray
    """-1 where a token is still open."""
    head: int
    """So many tokens at the beginning are no text."""
    lead: str = ""
    """The end of the text before the last blank, where that was given back and the blank begins with it."""


T = TypeVar("T")


class Step(NamedTuple):
    """What is to be filled next on the way to a text: all of a document that is not given."""

    document: Document
    decoding: Decoding
    """Where it has ends, the document's last blank may end."""
    empty_L: np.ndarray | None = None
    """Places that stay empty, bool."""

    def stands(self, filled: loop.Filled, row: int = 0) -> Tokens:
        """How it stands in a row of a batch."""
        tokens_L, log_probs_L, passes_L = (x_BxL[row, : len(self.document.tokens)] for x_BxL in filled)
        return Tokens(tokens_L, log_probs_L, passes_L, self.document.head, lead_of(self.document.healed[-1]))

    def is_done(self, model: Model, text: Tokens) -> bool:
        """Whether nothing more is to be predicted."""
        empty_L = False if self.empty_L is None else self.empty_L
        return bool(((text.passes >= 0) | empty_L).all()) or end_of(model, self.document, self.decoding, text) is not None


Filling = Generator[Step, Tokens, T]
"""A text being filled: the steps that it takes, one after the other, each answered with what came of it."""
Observe = Callable[[list[Tokens]], None]
"""Called after every pass with each text as it stands."""


def document_of(model: Model, template: Template, heal: bool = False) -> Document:
    """The tokens of a template, blanks of unknown size at their largest. Raises `UserError` beyond the model's context.

    `heal` as in `Decoding`.
    """
    sizes = [size if isinstance(size, int) else size.most for size in template.sizes]
    check_context(model, sum(sizes) + (model.codec.start is not None))  # before a million blanks are laid out
    healing = model.healing if heal and not template.whole else None  # a chat's prompt ends as its template writes it
    document = lay_out(template.pieces, [[0] * size for size in sizes], model.codec, healing, template.whole)
    check_context(model, len(document.tokens))
    return document


def fill(
    model: Model, steps: Sequence[Step], observe: Observe | None = None, beginning: Beginning | None = None
) -> list[Tokens]:
    """Make the steps of several texts in one batch, until each is done. Their decodings have their `program` in common.

    Given tokens that all documents begin with may have been read, as `a3jax.decode.loop.decode` says.
    """

    def look(filled: loop.Filled) -> bool:
        texts = [step.stands(filled, row) for row, step in enumerate(steps)]
        if observe is not None:
            observe(texts)
        return all(step.is_done(model, text) for step, text in zip(steps, texts))

    drawn, decoding = _plan(model, steps, beginning), steps[0].decoding
    look_on = look if observe is not None or any(step.decoding.ends for step in steps) else None
    filled = loop.decode(model.network, drawn, decoding, look_on, beginning)
    return [step.stands(filled, row) for row, step in enumerate(steps)]


def begun(model: Model, step: Step) -> loop.Rows:
    """A batch of one step after its first pass."""
    return loop.first_pass(model.network, _plan(model, [step]), step.decoding)


def _plan(model: Model, steps: Sequence[Step], beginning: Beginning | None = None) -> Plan:
    decodings, documents = [step.decoding for step in steps], [step.document for step in steps]
    empty = [np.zeros(len(step.document.tokens), bool) if step.empty_L is None else step.empty_L for step in steps]
    decodings, documents, empty = filled_up(decodings), filled_up(documents), filled_up(empty)
    return plan(
        decodings,
        [document.tokens for document in documents],
        [document.given for document in documents],
        model.config,
        _allowed(model, decodings),
        [one.tolist() for one in empty],
        0 if beginning is None else int(beginning.length_B[0]),
        [document.allowed for document in documents],
    )


class End(NamedTuple):
    """Where a document's last blank ends."""

    tokens: int
    """The document has so many up to there: without the end token, or with all of its stop string."""
    characters: int
    """Of the blank."""


def end_of(model: Model, document: Document, decoding: Decoding, text: Tokens) -> End | None:
    """Where the last blank has ended if it may, None if it has not (yet). Only what is decided without a gap counts."""
    if not decoding.ends:
        return None
    place = document.blanks[-1]
    begin, undecided = place.start, np.flatnonzero(text.passes[place] < 0)
    tokens = text.tokens[place][: int(undecided[0]) if len(undecided) else None].tolist()
    end_tokens = _end_tokens(model)
    ends = [i for i, token in enumerate(tokens) if token in end_tokens]
    tokens = tokens[: ends[0]] if ends else tokens
    number = len(document.blanks) - 1
    written = document.written(number, tokens, model.codec)
    stops = [written.find(stop) for stop in decoding.stop if stop in written]
    if stops:
        first = min(stops)
        texts = (document.written(number, tokens[:n], model.codec) for n in itertools.count())
        count = next(n for n, text in enumerate(texts) if any(stop in text for stop in decoding.stop))
        return End(begin + count, first)
    return End(begin + len(tokens), len(written)) if ends else None


def _allowed(model: Model, decodings: Sequence[Decoding]) -> Array:
    """B x V bool: plain text, and the end of a text where it may end."""
    ends_V = np.isin(np.arange(model.config.vocab), _end_tokens(model))
    ends_B = np.array([decoding.ends for decoding in decodings])
    return jax.device_put(model.fillable | (ends_V & ends_B[:, None]))


def _end_tokens(model: Model) -> list[int]:
    own = [] if model.codec.end is None else [model.codec.end]
    return sorted({*own, *model.config.end_tokens})


def ends_blanks(model: Model, decoding: Decoding) -> bool:
    """Whether blanks of unknown length are filled up to their ends; of other models every size is tried."""
    return model.record.blanks_end or decoding.mode == "fim"


def check_ends(model: Model, template: Template, decoding: Decoding) -> None:
    """Raise `UserError` where a blank cannot end as it is to, or is to be filled in an order in which it has no end."""
    open_ = has_open(template.sizes)
    continued = decoding.ends and not isinstance(template.sizes[-1], Open)  # which may end in any case
    if continued and template.pieces[-1]:
        raise UserError("text stands behind the last blank; a text that is continued ends with its blank")
    if continued and decoding.mode == "fim":
        raise UserError("mode fim is for blanks with text behind them; text that is continued takes mode ar")
    if continued and isinstance(template.sizes[-1], Range):
        raise UserError("a text that may end has no sizes to choose; give the largest alone")
    check_stop(decoding.stop, decoding.ends or open_)
    if open_ and not decoding.fills_to_ends:
        what = f"mode {decoding.mode}" if decoding.mode not in ("ar", "groups") else f"order {decoding.order}"
        raise UserError(
            f"{what} does not fill from left to right, as a blank without a size must be; give it one, or order ar"
        )
    if open_ and ends_blanks(model, decoding) and decoding.revise:
        raise UserError("revise is for blanks with a size, which [[..N]] finds while it is filled; give one, such as [[8]]")
    if open_ and not ends_blanks(model, decoding) and decoding.stop:
        raise UserError("stop is for blanks that end, which this model was not trained on (docs/blanks.md); leave it out")


def check_stop(stop: tuple[str, ...], may_end: bool) -> None:
    """Raise `UserError` for stop strings where no blank may end."""
    if stop and not may_end:
        raise UserError("stop strings are for text that is continued; here every blank has a length")


def closed(template: Template) -> Template:
    """The template with all sizes to choose from in place of unknown ones."""
    sizes = (Range(1, size.most) if isinstance(size, Open) else size for size in template.sizes)
    return dataclasses.replace(template, sizes=tuple(sizes))
