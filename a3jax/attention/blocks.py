"""Which keys rows see, and which blocks of keys a block of rows can see: from their ranges, and from positions.

In a layer with local attention, a row sees the keys of its range whose position is near its own, on either side of it. Ranges
are of slots and windows of positions, so where slots are out of order, a block of keys holds positions from everywhere.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

ATTENTION = "attention"
"""What rematerialization calls the result of a path and the log-sum-exp beside it: all that its backward pass needs."""

SPLASH_BLOCK = 512
"""Rows and keys of a block of Splash, of all three kernels, but for long windows."""


def splash_block(length: int, width: int, context: int = 1) -> int:
    """Rows and keys of a block of Splash for windows of `length` tokens and heads `width` wide, split over `context` devices.

    Larger blocks take fewer steps of the kernel's grid, each of which has a price, and compute more keys that no row sees:
    of a window of one document (1 + block / length) / 2 of all, where half is needed. So a window has eight blocks or more.
    Heads wider than 128 keep the smaller ones, which take less of VMEM. Under `context` no larger block of rows spans both of
    a device's pieces of a window (`a3jax.devices.context_parallel`). What is fastest is for a chip to say, and was not
    measured.
    """
    larger = 2 * SPLASH_BLOCK
    return larger if length >= 8 * larger and width <= 128 and length // (2 * context) % larger == 0 else SPLASH_BLOCK


Range = tuple[Array, Array]
"""The first key of each row's range and the one after its last; int32, of the shape of rows."""


EVERYWHERE = 2**30
"""A window that no two positions are so far apart."""


class Attended(NamedTuple):
    """What a path of attention makes of rows."""

    out: Array
    """B x R x H x E, in the dtype of queries."""
    lse: Array | None
    """B x R x H float32: the log-sum-exp of the scores that a row sees, anything but NaN where it sees none; None from
    `splash`, which does not tell it."""


class Local(NamedTuple):
    """Local attention: rows see those keys of their ranges whose positions lie strictly between two."""

    low: Array
    """int32, of the shape of rows."""
    high: Array
    position: Array
    """That of every key, B x L."""

    @classmethod
    def within(cls, window: Array | int, row_BxR: Array, key_BxL: Array) -> "Local":
        """Rows and keys at these positions: a key is seen that is less than `window` tokens away."""
        return cls(row_BxR - window, row_BxR + window, key_BxL)


def visible(key: Array, start: Array, end: Array, own: Range | None) -> Array:
    """Whether keys are in the ranges of rows: their number, ... x L."""
    seen = (key >= start[..., None]) & (key < end[..., None])
    return seen if own is None else seen | visible(key, *own, None)


def near(position: Array, low: Array, high: Array) -> Array:
    """Whether keys are in the windows of rows: ... x L, of which `position` has the last axis, and those that it shares."""
    return (position > low[..., None]) & (position < high[..., None])


def visible_keys(start_BxR: Array, end_BxR: Array, rows: int, keys: int, local: Local | None = None) -> tuple[Array, Array]:
    """For every block of `rows` rows the first block of `keys` keys that one of them sees, and the one after the last.

    Both are B x R / rows int32. Where no row sees anything, the first is far beyond the last, or the last 0. Under local
    attention, blocks at either end are left out whose positions all lie outside of all rows' windows; `keys` divides those.
    """
    start, end = (x.reshape(x.shape[0], -1, rows) for x in (start_BxR, end_BxR))
    seen = end > start
    first = jnp.where(seen, start, jnp.iinfo(jnp.int32).max).min(-1) // keys
    last = -(-jnp.where(seen, end, 0).max(-1) // keys)
    if local is None:
        return first, last
    low = jnp.where(seen, local.low.reshape(start.shape), EVERYWHERE).min(-1, keepdims=True)
    high = jnp.where(seen, local.high.reshape(start.shape), -EVERYWHERE).max(-1, keepdims=True)
    position_BxJxk = local.position.reshape(len(low), -1, keys)
    number_J = jnp.arange(position_BxJxk.shape[1])
    wanted_BxIxJ = (position_BxJxk.max(-1)[:, None] > low) & (position_BxJxk.min(-1)[:, None] < high)
    wanted_BxIxJ &= (number_J >= first[..., None]) & (number_J < last[..., None])
    first = jnp.where(wanted_BxIxJ, number_J, jnp.iinfo(jnp.int32).max).min(-1)
    return first, jnp.where(wanted_BxIxJ, number_J + 1, 0).max(-1)
