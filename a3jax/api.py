"""The Python interface: load a model, fill blanks, score text.

    import a3jax

    model = a3jax.load("my-model")
    filled = a3jax.infill(model, "def area(r): [[8]] * r", order="ar")
    print(filled.text)
    print(a3jax.log_likelihood(model, filled.text).total)

`import a3jax` loads none of this; the first use does.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from a3jax.config import ModelConfig
from a3jax.data.tokenizer import TextCodec, fillable
from a3jax.decode.groups import decode, draw, plan
from a3jax.decode.sampling import checked
from a3jax.decode.template import Document, lay_out, parse
from a3jax.errors import UserError
from a3jax.evaluate import likelihood
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import Order
from a3jax.pretrained import Pretrained, pretrained
from a3jax.record import Record


@dataclass(frozen=True)
class Model:
    """A network with its weights and its tokenizer."""

    config: ModelConfig
    params: nnx.State
    codec: TextCodec
    record: Record
    checkpoint: Pretrained
    how: Compute
    fillable: Array
    """V bool: tokens that may stand in a blank, which are those of plain text."""


@dataclass(frozen=True)
class Blank:
    """What was filled into one blank."""

    text: str
    """Its tokens alone, decoded; a character that is cut at the blank's edge shows as the replacement character."""
    tokens: tuple[int, ...]
    log_prob: float
    """Nats, under the model's own distribution in the order of decoding."""


@dataclass(frozen=True)
class Infilled:
    """A template with its blanks filled."""

    text: str
    """The whole text, decoded at once."""
    blanks: tuple[Blank, ...]
    forwards: int
    """Passes through the network: one for each group."""
    seconds: float
    """Wall time, compilation included where this was the first of its size."""
    pieces: tuple[tuple[str, bool], ...]
    """`text` in pieces, and whether each was filled in; a character cut at a blank's edge goes with what follows."""
    tokens: tuple[int, ...]
    """Of the whole document, start token included."""
    given: tuple[bool, ...]
    """Which of them were given."""

    @property
    def log_prob(self) -> float:
        """Of all blanks together, in nats."""
        return sum(blank.log_prob for blank in self.blanks)


@dataclass(frozen=True)
class Likelihood:
    """Exact log-probability of text in one order, in nats."""

    total: float
    tokens: tuple[int, ...]
    """The tokens that were predicted, in the order of the text."""
    log_probs: tuple[float, ...]
    """One for each of `tokens`."""


def load(path: str | Path, dtype: str = "float32", step: int | None = None) -> Model:
    """Load a model folder, a run folder at its newest step or the one asked for, or what `a3jax import` takes.

    `dtype` is "float32" or "bfloat16", for weights and computation. Raises `UserError` for anything else, and for a
    folder that holds no model.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype '{dtype}' is unknown; choose float32 or bfloat16")
    checkpoint = pretrained(path, step)
    codec = checkpoint.codec
    if codec.vocab > checkpoint.config.vocab:
        raise UserError(f"{path}: the tokenizer has {codec.vocab} tokens, the model only {checkpoint.config.vocab}")
    params = checkpoint.load(dtype=dtype)
    how = Compute(jnp.dtype(dtype))
    may_fill = jnp.asarray(fillable(codec, checkpoint.config))
    return Model(checkpoint.config, params, codec, checkpoint.record, checkpoint, how, may_fill)


def infill(
    model: Model,
    template: str,
    order: str = "ar",
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Infilled:
    r"""Fill the blanks of a template: `[[8]]` stands for eight tokens, `\[[8]]` for itself.

    order        "ar" fills from left to right, one token a pass; "random_4" in random groups of four, "in_order_4" and
                 "spans_4" in neighbours. All blanks share one order. The text around blanks is seen from both sides
    seed         draws the order and the tokens; the same seed gives the same text
    temperature  0 takes the most probable token, 1 draws from the model's distribution
    top_k        draw from the k most probable tokens only; 0 for all
    top_p        draw from the most probable tokens that together have this probability

    Raises `UserError` for a template without a blank, one that is longer than the model's context, or a bad value.
    """
    return infill_batch(model, [template], order, seed, temperature, top_k, top_p)[0]


def infill_batch(
    model: Model,
    templates: Sequence[str],
    order: str = "ar",
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[Infilled]:
    """Fill several templates at once; the same one n times gives n samples. See `infill`.

    Template i uses seed + i, so that its result does not depend on the others. `forwards` and `seconds` are the batch's.
    Programs are compiled for each number of templates; keep it the same.
    """
    begin = time.perf_counter()
    if not templates:
        raise UserError("no template is given; give at least one")
    sampling = checked(temperature, top_k, top_p)
    parsed = map(parse, templates)
    documents = [lay_out(t.pieces, [[0] * size for size in t.sizes], model.codec) for t in parsed]
    for document in documents:
        _check_context(model, document.tokens)
    seeds = [_checked_seed(seed + i) for i in range(len(templates))]
    tokens, given = [d.tokens for d in documents], [d.given for d in documents]
    filled = decode(
        model.params,
        model.config,
        model.how,
        plan(seeds, tokens, given, order, model.config.seeding),
        sampling,
        model.fillable,
    )
    seconds = time.perf_counter() - begin
    return [
        _infilled(model, document, filled.tokens_BxL[i], filled.log_probs_BxL[i], filled.forwards, seconds)
        for i, document in enumerate(documents)
    ]


def log_likelihood(
    model: Model, text: str, order: str = "ar", seed: int = 0, blanks: Sequence[str] | None = None
) -> Likelihood:
    """Exact log-probability of a text, every token predicted from those that come before it in `order`.

    The first token of the document is given: the model's start token, or the text's first where it has none. With
    `blanks`, `text` is a template and only the texts put into its blanks are scored, all else being given; the sizes
    written in the template do not matter.

    Raises `UserError` if there is nothing to score, or more than the model's context.
    """
    if blanks is None:
        document = lay_out([text], [], model.codec)
        given: Sequence[bool] = [i == 0 for i in range(len(document.tokens))]
    else:
        template = parse(text)
        if len(blanks) != len(template.sizes):
            raise UserError(f"the template has {len(template.sizes)} blanks, and {len(blanks)} texts are given for them")
        document = lay_out(template.pieces, [model.codec.encode(blank) for blank in blanks], model.codec)
        given = document.given
    return token_log_likelihood(model, document.tokens, given, order, seed)


def token_log_likelihood(
    model: Model, tokens: Sequence[int], given: Sequence[bool], order: str = "ar", seed: int = 0
) -> Likelihood:
    """`log_likelihood` of tokens, those that are `given` aside. The first must be.

    With the `tokens` and `given` of an `Infilled`, and its order and seed, this is the log-probability with which the
    blanks were filled: decoding and teacher forcing are one model.
    """
    if len(tokens) != len(given):
        raise UserError(f"{len(tokens)} tokens but {len(given)} marks of what is given; give one for each token")
    if all(given):
        raise UserError("there is nothing to score; give more text than the document's first token")
    if not given[0]:
        raise UserError("the first token of a document cannot be predicted; mark it as given")
    _check_context(model, tokens)
    if not all(0 <= token < model.config.vocab for token in tokens):
        raise UserError(f"token {max(tokens, key=abs)} is not in the model's vocabulary of {model.config.vocab}")
    drawn = draw(_checked_seed(seed), tokens, given, order, model.config.seeding)
    order_1xL = jax.tree.map(lambda x: x[None], drawn.order)
    log_prob_1xL = _log_probs(model.params, drawn.tokens_L[None], order_1xL, config=model.config, how=model.how)
    log_probs = np.asarray(log_prob_1xL)[0][: len(tokens)][~np.asarray(given)]
    return Likelihood(
        total=float(log_probs.sum(dtype=np.float64)),
        tokens=tuple(int(token) for token, known in zip(tokens, given) if not known),
        log_probs=tuple(log_probs.tolist()),
    )


@functools.partial(jax.jit, static_argnames=("config", "how"))
def _log_probs(params: nnx.State, tokens_BxL: Array, order: Order, config: ModelConfig, how: Compute) -> Array:
    return likelihood.log_probs(nnx.merge(graph(config), params), tokens_BxL, order, how)


def _infilled(
    model: Model, document: Document, tokens_L: np.ndarray, log_probs_L: np.ndarray, forwards: int, seconds: float
) -> Infilled:
    tokens = tokens_L[: len(document.tokens)].tolist()
    blanks = tuple(
        Blank(model.codec.decode(tokens[place]), tuple(tokens[place]), float(log_probs_L[place].sum(dtype=np.float64)))
        for place in document.blanks
    )
    first = 0 if model.codec.start is None else 1
    text = model.codec.decode(tokens[first:])
    pieces, begin = [], 0
    for edge, filled in [(e, e == place.stop) for place in document.blanks for e in (place.start, place.stop)]:
        end = _alike(text, model.codec.decode(tokens[first:edge]))
        pieces.append((text[begin:end], filled))
        begin = end
    pieces.append((text[begin:], False))
    return Infilled(text, blanks, forwards, seconds, tuple(pieces), tuple(tokens), document.given)


def _alike(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _check_context(model: Model, tokens: Sequence[int]) -> None:
    if len(tokens) > model.config.context:
        raise UserError(f"the text with its blanks is {len(tokens)} tokens, the model's context only {model.config.context}")


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below {2**32}")
    return seed
