"""Log-likelihoods of continuations, such as the choices of one question: what they share is read once.

The choices of an item begin alike. The tokens that they have in common are read into a cache by one pass; others score
the choices from copies of it, those of like length together. Given tokens are read from left to right whatever the order
of the rest, so that this holds in every order. From left to right one stream is enough, where it predicts as the query
stream does; in any other order the choices are read and predicted by both.

What is read has a few sizes only, so that few programs are compiled. Sizes, and not what is in them, depend on the batch.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode.beginning import read_beginnings
from a3jax.decode.cached import Beginning
from a3jax.decode.sampling import log_prob
from a3jax.devices.context_parallel import refuse
from a3jax.devices.mesh import fetched
from a3jax.errors import UserError
from a3jax.generate.continued import Suffix, hidden, single_stream, stacked, suffix_of
from a3jax.model.network import Network
from a3jax.ordering.sequence import bucket
from a3jax.weights.loading import Model

HEADS_AT_ONCE = 8
"""Choices whose logits are held at once: those of a large vocabulary are the largest arrays by far."""


class Choice(NamedTuple):
    """Tokens of a context and its continuation."""

    tokens: tuple[int, ...]
    given: int
    """The first so many are the context, of at least one; the others are scored."""


class Score(NamedTuple):
    """What a model makes of one continuation."""

    log_prob: float
    """Nats."""
    greedy: bool
    """Whether each token is the most probable one in its place."""


Item = Sequence[Choice]
"""Choices that begin alike."""


def longest(model: Model, order: str) -> int:
    """Tokens of a choice at most: from left to right the last one is predicted, and not read."""
    return model.config.context + single_stream(model.config, order)


def check_length(model: Model, order: str, tokens: int) -> None:
    """Raises `UserError` if a choice of so many tokens is longer than `longest`."""
    if tokens > (most := longest(model, order)):
        raise UserError(f"{tokens} tokens are more than the {most} that the model's context has room for")


def score(model: Model, items: Sequence[Item], order: str = "ar", seed: int = 0, batch: int = 8) -> list[list[Score]]:
    """Score every choice of `items`, of which `batch` of like length are computed at once.

    An order that is drawn follows from `seed` and the choice itself. Raises `UserError` for an unknown order, for a choice
    that is longer than `longest` or has no token to score, and under a mesh with `context`.
    """
    refuse("scoring choices by what they share")
    for choice in itertools.chain.from_iterable(items):
        if not 0 < choice.given < len(choice.tokens):
            raise UserError("a choice has no context, or no token to score behind it; give both")
        check_length(model, order, len(choice.tokens))
    found: dict[int, list[Score]] = {}
    by_size = sorted(range(len(items)), key=lambda i: (len(items[i]), max(len(choice.tokens) for choice in items[i])))
    for _, group in itertools.groupby(by_size, key=lambda i: len(items[i])):
        alike = list(group)
        for begin in range(0, len(alike), batch):
            chosen = alike[begin : begin + batch]
            filled = chosen + [chosen[-1]] * (batch - len(chosen))
            found |= zip(chosen, _score_batch(model, [items[i] for i in filled], order, seed))
    return [found[i] for i in range(len(items))]


def shared(item: Item) -> int:
    """How many tokens the choices of an item begin with alike; at least the last of a context is each one's own."""
    columns = zip(*(choice.tokens for choice in item))
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return min(alike, *(choice.given - 1 for choice in item))


def _score_batch(model: Model, items: Sequence[Item], order: str, seed: int) -> list[list[Score]]:
    """The scores of items that have as many choices each."""
    lengths = [shared(item) for item in items]
    beginnings = [item[0].tokens[:length] for item, length in zip(items, lengths)]
    owner_R = np.repeat(np.arange(len(items)), len(items[0]))
    each = [
        suffix_of(model.config, *choice, length, order, seed_of(seed, choice))
        for item, length in zip(items, lengths)
        for choice in item
    ]
    beginning = read_beginnings(model.network, beginnings)
    found: dict[int, Score] = {}
    by_size = sorted(range(len(each)), key=lambda i: len(each[i].target))
    for begin in range(0, len(each), len(items)):
        chosen = by_size[begin : begin + len(items)]
        places = bucket(len(each[chosen[-1]].target), least=8, steps=4)
        suffix = stacked(places, [each[i] for i in chosen])
        scores = _scores(model.network, beginning, owner_R[chosen], suffix)
        found |= {i: Score(float(nats), bool(greedy)) for i, nats, greedy in zip(chosen, *fetched(scores))}
    in_order = (found[i] for i in range(len(each)))
    return [list(itertools.islice(in_order, len(item))) for item in items]


def seed_of(seed: int, content: object) -> int:
    """A seed for whatever `content` is written as, the same in every batch and every run."""
    return int.from_bytes(hashlib.sha256(f"{seed} {content}".encode()).digest()[:4])


@jax.jit
def _scores(network: Network, beginning: Beginning, owner_R: Array, suffix: Suffix) -> tuple[Array, Array]:
    """Nats of every choice, and whether it is greedy, R each. `owner` is whose beginning is a choice's."""
    module = network.module()
    hidden_RxMxD = hidden(module, beginning, owner_R, suffix, network.compute)

    def one(hidden_MxD: Array, target_M: Array, scored_M: Array) -> tuple[Array, Array]:
        logits_MxV = module.logits(hidden_MxD)
        greedy_M = (jnp.argmax(logits_MxV, -1) == target_M) | ~scored_M
        return jnp.where(scored_M, log_prob(logits_MxV, target_M), 0.0).sum(), greedy_M.all()

    chosen = (hidden_RxMxD, suffix.target, suffix.scored)
    return jax.lax.map(lambda row: one(*row), chosen, batch_size=min(HEADS_AT_ONCE, len(hidden_RxMxD)))
