"""The order of one sequence of tokens, drawn or made of groups that are known, and padded to one of a few lengths.

Programs are compiled for shapes, so whatever has a length of its own is padded to a `bucket` first. What is drawn depends on
the sequence alone and not on what else is in a batch.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import Seeding
from a3jax.curriculum.stage import Family, Prefill, parse_order
from a3jax.ordering.arrange import Order, arrange
from a3jax.ordering.draw import example_keys
from a3jax.ordering.families import draw_groups


class Drawn(NamedTuple):
    """One sequence, padded to a bucket of L tokens, with an order and a key for sampling."""

    tokens_L: np.ndarray
    order: Order
    """Each array has L entries."""
    key: Array


def bucket(count: int, least: int = 32, steps: int = 1) -> int:
    """`count` rounded up to one of `steps` sizes for every doubling, at least `least`, so that few are ever compiled."""
    step = max(1, (1 << (count - 1).bit_length()) // (2 * steps))
    return max(least, -(-count // step) * step)


def draw(
    seed: int,
    tokens: Sequence[int],
    given: Sequence[bool],
    order: str,
    seeding: Seeding,
    prefill: Prefill = "ar",
    empty: Sequence[bool] | None = None,
) -> Drawn:
    """Draw the order of one sequence, padded to its bucket. Raises `UserError` for an unknown order.

    Places that stay `empty` hold no token: they are not predicted, and nothing sees them. It depends on the seed, the given
    and empty places and the seeding alone, not on what else is in a batch.
    """
    family, group_size = parse_order(order)
    length = bucket(len(tokens))
    padding = (0, length - len(tokens))
    given_L = np.pad(np.asarray(given, bool), padding)
    segment_L = np.pad(np.ones(len(tokens), np.int32), padding)
    # A group never exceeds the window; a larger size means the same, and might not fit an int32.
    size, together = min(group_size, length), prefill == "group"
    empty_L = np.zeros(length, bool) if empty is None else np.pad(np.asarray(empty, bool), padding)
    what = np.uint32(seed), given_L, segment_L, empty_L, size
    key, arranged = _draw(*what, family=family, seeding=seeding, together=together)
    return Drawn(np.pad(np.asarray(tokens, np.int32), padding), arranged, key)


@functools.partial(jax.jit, static_argnames=("family", "seeding", "together"))
def _draw(
    seed: Array,
    given_L: Array,
    segment_L: Array,
    empty_L: Array,
    group_size: Array,
    family: Family,
    seeding: Seeding,
    together: bool,
) -> tuple[Array, Order]:
    group_key, sample_key = jax.random.split(example_keys(seed, 0, 1)[0])
    group_L = draw_groups(group_key, segment_L, given_L | empty_L, family, group_size)
    group_L = jnp.where(empty_L, 2 * len(group_L), jnp.where(given_L & together, 0, group_L))  # behind all that are drawn
    order = arrange(group_L, given_L, segment_L, seeding)
    return sample_key, order._replace(predicted=order.predicted & ~empty_L[order.token_index])


def grouped(given: Sequence[bool], groups: Sequence[int], seeding: Seeding, prefill: Prefill = "ar") -> Order:
    """The order of one sequence whose groups are known, padded to its bucket: smaller numbers come first."""
    own = len(groups)
    padding = (0, bucket(own) - own)
    _, rank = np.unique(np.asarray(groups), return_inverse=True)
    known = np.zeros(own, int) if prefill == "group" else np.arange(own)
    group_L = np.pad(np.where(given, known, own + rank), padding).astype(np.int32)
    given_L, segment_L = np.pad(np.asarray(given, bool), padding), np.pad(np.ones(own, np.int32), padding)
    return arrange(group_L, given_L, segment_L, seeding=seeding)


def left_to_right(order: Order, length: int) -> bool:
    """Whether an order, L, takes a sequence of so many tokens one by one as it stands, whichever of them are given."""
    place = np.arange(length)
    return all(np.array_equal(x_L[:length], place) for x_L in (order.token_index, order.group_start))


def pad_order(order: Order, length: int) -> Order:
    """The order of one sequence with padding up to `length`: slots that see nothing and are not predicted."""
    order = jax.tree.map(np.asarray, order)
    own, end = len(order.position), int(order.group_end[-1])
    ranges = dict.fromkeys(("start", "group_start", "group_end", "slot_end"), end)
    fills = {"predecessor": -1, "successor": -1, "predicted": False, **ranges}

    def pad(name: str, x_L: Array) -> Any:
        rest = np.arange(own, length) if name == "token_index" else np.full(length - own, fills.get(name, 0))
        return np.concatenate([x_L, rest]).astype(x_L.dtype)

    return Order(**{name: pad(name, x_L) for name, x_L in order._asdict().items()})
