"""Which blocks of keys a block of rows can see, from the rows' ranges."""

import jax.numpy as jnp
from jax import Array

ATTENTION = "attention"
"""What rematerialization calls the result of a path and the log-sum-exp beside it: all that its backward pass needs."""

BLOCK = 512
"""Rows and keys of a block of Splash, of all three kernels, but for long windows."""


def splash_block(length: int, width: int, context: int = 1) -> int:
    """Rows and keys of a block of Splash for windows of `length` tokens and heads `width` wide, split over `context` devices.

    Larger blocks take fewer steps of the kernel's grid, each of which has a price, and compute more keys that no row sees:
    of a window of one document (1 + block / length) / 2 of all, where half is needed. So a window has eight blocks or more.
    Heads wider than 128 keep the smaller ones, which take less of VMEM. Under `context` no larger block of rows spans both of
    a device's pieces of a window (`a3jax.devices.context_parallel`). What is fastest is for a chip to say, and was not
    measured.
    """
    larger = 2 * BLOCK
    return larger if length >= 8 * larger and width <= 128 and length // (2 * context) % larger == 0 else BLOCK


Range = tuple[Array, Array]
"""The first key of each row's range and the one after its last; int32, of the shape of rows."""


def visible(key: Array, start: Array, end: Array, own: Range | None) -> Array:
    """Whether rows see keys: their number, ... x L."""
    seen = (key >= start[..., None]) & (key < end[..., None])
    return seen if own is None else seen | visible(key, *own, None)


def visible_keys(start_BxR: Array, end_BxR: Array, rows: int, keys: int) -> tuple[Array, Array]:
    """For every block of `rows` rows the first block of `keys` keys that one of them sees, and the one after the last.

    Both are B x R / rows int32. Where no row sees anything, the first lies far beyond the last, which is 0.
    """
    start, end = (x.reshape(x.shape[0], -1, rows) for x in (start_BxR, end_BxR))
    seen = end > start
    first = jnp.where(seen, start, jnp.iinfo(jnp.int32).max).min(-1) // keys
    last = -(-jnp.where(seen, end, 0).max(-1) // keys)
    return first, last
