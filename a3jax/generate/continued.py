"""Texts that go on from copies of what they begin with: the rows that a pass reads of each, and what it predicts.

From left to right one stream is enough, where it predicts as the query stream does; in any other order the texts are read
and predicted by both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import Content, ModelConfig
from a3jax.curriculum.stage import Part
from a3jax.decode.beginning import padded
from a3jax.decode.cached import Asked, Beginning, Read, one_pass
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.two_stream import Beside, Compute, TwoStream
from a3jax.ordering import Order
from a3jax.ordering.sequence import draw


class Suffix(NamedTuple):
    """What is read of a text after its beginning, M each or, of R texts, R x M; and what is asked."""

    read: Read
    target: np.ndarray
    scored: np.ndarray
    asked: Asked | None
    """None where the content of a slot predicts the token of the next."""


def suffix_of(config: ModelConfig, tokens: Sequence[int], given: int, begin: int, order: str = "ar", seed: int = 0) -> Suffix:
    """The rows of a text from slot `begin` on, the first `given` of whose tokens are not scored, in an order of `seed`."""
    if single_stream(config, order):
        return _one_stream(tokens, given, begin)
    known = [place < given for place in range(len(tokens))]
    return _two_streams(tokens, draw(seed, tokens, known, order, config.seeding).order, begin, config.content)


def single_stream(config: ModelConfig, order: str) -> bool:
    """Whether the content stream alone is read."""
    return one_stream_is_enough(config, Part.named(order).is_ar)


def _one_stream(tokens: Sequence[int], given: int, begin: int) -> Suffix:
    """The content rows up to the last token but one."""
    slot, token_L = np.arange(begin, len(tokens) - 1), np.asarray(tokens)
    return Suffix(Read(token_L[slot], slot, slot + 1), token_L[slot + 1], slot + 1 >= given, None)


def _two_streams(tokens: Sequence[int], order: Order, begin: int, content: Content) -> Suffix:
    """The rows of both streams, content rows as `ModelConfig.content` has them."""
    token_L = np.asarray(tokens)
    slots = jax.tree.map(lambda x_L: np.asarray(x_L)[begin : len(tokens)], order)
    beside = Beside(*(token_L[np.maximum(each, 0)] for each in (slots.predecessor, slots.successor)))
    asked = Asked(beside, slots.query, slots.group_start * slots.predicted)
    own = token_L[slots.token_index]
    return Suffix(Read(own, slots.position, slots.content_end(content)), own, slots.predicted, asked)


def stacked(places: int, suffixes: Sequence[Suffix]) -> Suffix:
    """The rows of R texts, R x `places` each."""
    return jax.tree.map(lambda *rows: padded(places, *rows), *suffixes)


def hidden(module: TwoStream, beginning: Beginning, owner_R: Array, suffix: Suffix, compute: Compute) -> Array:
    """The normalized last hidden state of every row that predicts a target, R x M x D.

    Text i goes on from a copy of the beginning `owner` i.
    """
    slots = beginning.cache.slots + suffix.target.shape[1]
    cache = beginning.cache.copies(owner_R, slots)
    length_R = jnp.asarray(beginning.length_B)[owner_R]
    return one_pass(module, suffix.read, suffix.asked, cache, length_R, compute)[0]
