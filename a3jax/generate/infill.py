"""Filling the blanks of texts: `a3jax.infill` and its relatives.

import a3jax

model = a3jax.load("my-model")
filled = a3jax.infill(model, "def area(r): [[8]] * r", order="ar")
print(filled.text)
print(a3jax.log_likelihood(model, filled.text).total)
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode import loop
from a3jax.decode.cached import plan
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Document, Part, Range, Template, lay_out, parse
from a3jax.devices.mesh import filled_up
from a3jax.errors import UserError, check_list
from a3jax.files.strict import nearest
from a3jax.generate.middle import middle_last
from a3jax.generate.objective import check_mode
from a3jax.likelihood.scoring import token_log_likelihoods
from a3jax.model.network import check_context
from a3jax.weights.loading import Model

CANDIDATES = 8
"""Lengths of a blank that are tried in one batch."""
ROUNDS = 16
"""A text is revised at most so often."""


@dataclass(frozen=True)
class Blank:
    """What was filled into one blank."""

    text: str
    """Its tokens alone, decoded; a character that is cut at the blank's edge shows as the replacement character."""
    tokens: tuple[int, ...]
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
    pieces: tuple[tuple[str, bool], ...]
    """`text` in pieces, and whether each was filled in; a character cut between two blanks goes with the second."""
    places: tuple[slice, ...]
    """Where in `tokens` each of `pieces` stands; before the first are the tokens that are no text."""
    tokens: tuple[int, ...]
    """Of the whole document, what stands before its text included."""
    given: tuple[bool, ...]
    """Which of them were given."""
    log_probs: tuple[float, ...]
    """Of each token in nats, as in `Blank.log_prob`; 0 for given ones."""
    passes: tuple[int, ...]
    """The pass that decided each token, from 1; 0 for given ones."""
    finished: str
    """ "length" where every blank was filled, "stop" where the last one ended before."""

    @property
    def parts(self) -> list[Part]:
        """Pieces and blanks in turn."""
        return [Part(text, place, filled) for (text, filled), place in zip(self.pieces, self.places)]

    @property
    def log_prob(self) -> float:
        """Of all blanks together, in nats."""
        return sum(blank.log_prob for blank in self.blanks)


class Tokens(NamedTuple):
    """A document filled, or on its way. One entry per token."""

    tokens: np.ndarray
    log_probs: np.ndarray
    passes: np.ndarray
    """-1 where a token is still open."""
    head: int
    """So many tokens at the beginning are no text."""


Observe = Callable[[list[Tokens]], None]
"""Called after every pass with each text as it stands."""


def infill(model: Model, template: str | Template, decoding: Decoding | None = None, **changes: Any) -> Infilled:
    r"""Fill the blanks of a template: `[[8]]` stands for eight tokens, `[[4-12]]` for four to twelve, `\[[8]]` for itself.

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
    decodings = _each(decoding, len(templates), changes)
    check_mode(model, decodings[0])
    if decodings[0].mode == "block_diffusion" and not decodings[0].block:
        decodings = [dataclasses.replace(one, block=model.record.mask_block or 0) for one in decodings]
    parsed = [parse(t) if isinstance(t, str) else t for t in templates]
    sized = [_with_lengths(model, *one) for one in zip(parsed, decodings)]
    documents = [document_of(model, template) for template in sized]
    filled = _fill(model, documents, decodings, observe)
    if decodings[0].revise:
        filled = _revised(model, documents, decodings, filled, observe)
    seconds = time.perf_counter() - begin
    return [_infilled(model, *one, seconds) for one in zip(documents, decodings, filled)]


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
    known = [field.name for field in dataclasses.fields(Decoding)]
    for name in changes:
        if name not in known:
            raise UserError(f"decoding has no '{name}'{nearest(name, known)}")
    return dataclasses.replace(decoding, **changes)


def document_of(model: Model, template: Template) -> Document:
    """The tokens of a template, blanks to be chosen at their largest. Raises `UserError` beyond the model's context."""
    sizes = [size.most if isinstance(size, Range) else size for size in template.sizes]
    check_context(model, sum(sizes) + (model.codec.start is not None))  # before a million blanks are laid out
    document = lay_out(template.pieces, [[0] * size for size in sizes], model.codec)
    check_context(model, len(document.tokens))
    return document


def _fill(
    model: Model, documents: Sequence[Document], decodings: Sequence[Decoding], observe: Observe | None = None
) -> list[Tokens]:
    """Fill a batch of documents whose sizes are fixed."""
    if decodings[0].mode == "fim":
        return _fill_middles(model, documents, decodings)
    if any(one.ends and doc.blanks[-1].stop < len(doc.tokens) for one, doc in zip(decodings, documents)):
        raise UserError("text stands behind the last blank; a text that is continued ends with its blank")

    def cut(filled: loop.Filled) -> list[Tokens]:
        each = []
        for i, document in enumerate(documents):
            own = i, slice(len(document.tokens))
            found = filled.tokens_BxL[own], filled.log_probs_BxL[own], filled.passes_BxL[own]
            each.append(Tokens(*found, document.head))
        return each

    def look(filled: loop.Filled) -> bool:
        texts = cut(filled)
        if observe is not None:
            observe(texts)
        return all(
            (text.passes >= 0).all() or _end(model, document, decoding, text) is not None
            for text, document, decoding in zip(texts, documents, decodings)
        )

    rows = filled_up(list(zip(decodings, documents)))
    drawn = plan(
        [decoding for decoding, _ in rows],
        [document.tokens for _, document in rows],
        [document.given for _, document in rows],
        model.config.seeding,
        _allowed(model, [decoding for decoding, _ in rows]),
    )
    watched = observe is not None or any(decoding.ends for decoding in decodings)
    return cut(loop.decode(model.params, model.config, model.compute, drawn, decodings[0], look if watched else None))


def _fill_middles(model: Model, documents: Sequence[Document], decodings: Sequence[Decoding]) -> list[Tokens]:
    """One blank after the other, each from left to right behind the text around it."""
    in_order = [dataclasses.replace(decoding, mode="ar") for decoding in decodings]
    filled = [
        Tokens(np.array(one.tokens), np.zeros(len(one.tokens)), np.where(one.given, 0, -1), one.head) for one in documents
    ]
    for number in range(max(len(document.blanks) for document in documents)):
        blank = [min(number, len(document.blanks) - 1) for document in documents]
        moved = [
            middle_last(document, text.tokens.tolist(), i, model.record.fim_tokens)
            for document, text, i in zip(documents, filled, blank)
        ]
        for one in moved:
            check_context(model, len(one.tokens))
        for document, text, i, found in zip(documents, filled, blank, _fill(model, moved, in_order)):
            if i == number:
                place, size = document.blanks[i], document.blanks[i].stop - document.blanks[i].start
                text.tokens[place], text.log_probs[place] = found.tokens[-size:], found.log_probs[-size:]
                text.passes[place] = found.passes[-size:] + max(0, text.passes.max())
    return filled


def _allowed(model: Model, decodings: Sequence[Decoding]) -> Array:
    """B x V bool: plain text, and the end of a text where it may end."""
    ends_V = jnp.zeros_like(model.fillable).at[jnp.asarray(_end_tokens(model), jnp.int32)].set(True)
    ends_B = jnp.asarray([decoding.ends for decoding in decodings])
    return model.fillable | (ends_V & ends_B[:, None])


def _end_tokens(model: Model) -> list[int]:
    own = [] if model.codec.end is None else [model.codec.end]
    return sorted({*own, *model.config.end_tokens})


class End(NamedTuple):
    """Where a text that may end does so."""

    tokens: int
    """It has so many: without the end token, or with all of its stop string."""
    characters: int
    """Of the last blank."""


def _end(model: Model, document: Document, decoding: Decoding, text: Tokens) -> End | None:
    """Where a text that may end has ended, None if it has not (yet). Only what is decided without a gap counts."""
    if not decoding.ends:
        return None
    begin = document.blanks[-1].start
    open_ = np.flatnonzero(text.passes < 0)
    last = int(open_[0]) if len(open_) else len(text.tokens)
    tokens = text.tokens[begin:last].tolist()
    end_tokens = _end_tokens(model)
    ends = [i for i, token in enumerate(tokens) if token in end_tokens]
    tokens = tokens[: ends[0]] if ends else tokens
    inside = begin > document.head
    written = model.codec.decode(tokens, inside)
    stops = [written.find(stop) for stop in decoding.stop if stop in written]
    if stops:
        first = min(stops)
        texts = (model.codec.decode(tokens[:n], inside) for n in itertools.count())
        count = next(n for n, text in enumerate(texts) if any(stop in text for stop in decoding.stop))
        return End(begin + count, first)
    return End(begin + len(tokens), len(written)) if ends else None


def _with_lengths(model: Model, template: Template, decoding: Decoding) -> Template:
    """The template with every size chosen, one blank after the other, those not yet chosen at their largest.

    The length taken is that whose filled text has the largest log-likelihood per token, from the blank on, left to right.
    """
    for i, size in enumerate(template.sizes):
        if isinstance(size, Range):
            lengths = range(size.least, size.most + 1)
            document_of(model, template)  # the largest must fit
            scores = [score for n in range(0, len(lengths), CANDIDATES)
                      for score in _score_lengths(model, template, i, lengths[n : n + CANDIDATES], decoding)]  # fmt: skip
            template = _sized(template, i, lengths[int(np.argmax(scores))])
    return template


def _score_lengths(model: Model, template: Template, i: int, lengths: Sequence[int], decoding: Decoding) -> list[float]:
    """Nats per token of the text from blank i on, for each length. The batch is always as large, so as to compile once."""
    padded = [*lengths, *[lengths[-1]] * (CANDIDATES - len(lengths))]
    documents = [document_of(model, _sized(template, i, length)) for length in padded]
    filled = _fill(model, documents, [decoding] * len(documents))
    tokens = [text.tokens.tolist() for text in filled]
    given = [[at < document.blanks[i].start for at in range(len(document.tokens))] for document in documents]
    return [score.total / len(score.tokens) for score in token_log_likelihoods(model, tokens, given)][: len(lengths)]


def _sized(template: Template, i: int, size: int) -> Template:
    return dataclasses.replace(template, sizes=(*template.sizes[:i], size, *template.sizes[i + 1 :]))


def _revised(
    model: Model, documents: Sequence[Document], decodings: Sequence[Decoding], filled: list[Tokens], observe: Observe | None
) -> list[Tokens]:
    """Open each text's least probable tokens again and refill them, as long as the blanks become more likely by it.

    That is log p of the blanks given all text around them, on both sides, from left to right; not that of the whole text.
    """

    def scored(texts: Sequence[Tokens]) -> list[Tokens]:
        tokens = [text.tokens.tolist() for text in texts]
        found = token_log_likelihoods(model, tokens, [document.given for document in documents])
        each = []
        for text, document, score in zip(texts, documents, found):
            log_probs = np.zeros(len(text.tokens))
            log_probs[~np.asarray(document.given)] = score.log_probs
            each.append(text._replace(log_probs=log_probs))
        return each

    filled = scored(filled)
    going = [True] * len(documents)
    for _ in range(ROUNDS):
        opened = [_open(document, text, decodings[0].revise) for document, text in zip(documents, filled)]
        again = _fill(model, opened, decodings, observe)
        again = scored([_joined(old, new) for old, new in zip(filled, again)])
        better = [now and new.log_probs.sum() > old.log_probs.sum() for now, old, new in zip(going, filled, again)]
        filled = [new if rises else old for rises, old, new in zip(better, filled, again)]
        going = better
        if not any(going):
            break
    return filled


def _open(document: Document, text: Tokens, count: int) -> Document:
    """The document as it was filled, but for its `count` least probable tokens."""
    place = np.flatnonzero(~np.asarray(document.given))
    worst = place[np.argsort(text.log_probs[place], kind="stable")[:count]]
    given = np.ones(len(document.tokens), bool)
    given[worst] = False
    return document._replace(tokens=tuple(text.tokens.tolist()), given=tuple(given.tolist()))


def _joined(old: Tokens, new: Tokens) -> Tokens:
    """A revision of `old`: its passes come after those that were."""
    return new._replace(passes=np.where(new.passes > 0, new.passes + old.passes.max(), old.passes))


def _infilled(model: Model, document: Document, decoding: Decoding, filled: Tokens, seconds: float) -> Infilled:
    end = _end(model, document, decoding, filled)
    count = len(document.tokens) if end is None else end.tokens
    tokens, log_probs, passes = (tuple(x[:count].tolist()) for x in (filled.tokens, filled.log_probs, filled.passes))
    document = document._replace(tokens=tuple(filled.tokens.tolist())).first(count)
    blanks = []
    for place in document.blanks:
        text = model.codec.decode(list(tokens[place]), inside=place.start > document.head)
        blanks.append(Blank(text, tokens[place], float(np.sum(log_probs[place], dtype=np.float64))))
    parts = document.parts(model.codec)
    if end is not None:  # a stop string is no part of the text
        cut = len(blanks[-1].text) - end.characters
        blanks[-1] = dataclasses.replace(blanks[-1], text=blanks[-1].text[: end.characters])
        parts[-2] = parts[-2]._replace(text=parts[-2].text[: len(parts[-2].text) - cut])
    return Infilled(
        text="".join(part.text for part in parts),
        blanks=tuple(blanks),
        forwards=max(passes),
        seconds=seconds,
        pieces=tuple((part.text, part.filled) for part in parts),
        places=tuple(part.place for part in parts),
        tokens=tokens,
        given=document.given,
        log_probs=log_probs,
        passes=passes,
        finished="length" if end is None else "stop",
    )
