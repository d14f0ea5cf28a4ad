"""The documents of a window, whole numbers sorted fast, and windows brought into another order."""

import jax
import jax.numpy as jnp
from jax import Array

PADDING = jnp.iinfo(jnp.int32).max


def padding_last(segment_L: Array) -> Array:
    """Segment numbers with padding's 0 replaced by the largest one, so that it sorts to the end."""
    return jnp.where(segment_L == 0, PADDING, segment_L)


def changes(value_L: Array) -> Array:
    """True where a value differs from the one before it, and at 0."""
    return jnp.append(True, value_L[1:] != value_L[:-1])


def segment_bounds(segment_L: Array) -> tuple[Array, Array]:
    """For each token the first index of its segment and the index after its last."""
    index_L = jnp.arange(segment_L.shape[0])
    first_L = changes(segment_L)
    start_L = jax.lax.cummax(jnp.where(first_L, index_L, 0))
    end_L = jax.lax.cummin(jnp.where(jnp.append(first_L[1:], True), index_L + 1, segment_L.shape[0]), reverse=True)
    return start_L, end_L


def turns(segment_L: Array, context_L: Array) -> Array:
    """Numbers the turns of every document: context, and what is predicted behind it, up to the next context. Padding is 0."""
    begins_L = changes(segment_L) | (context_L & ~jnp.append(False, context_L[:-1]))
    return jnp.where(segment_L == 0, 0, jnp.cumsum(begins_L))


def order_by(key_L: Array, bound: int) -> Array:
    """The indices that sort whole numbers from 0 to `bound` - 1, equal ones staying in order.

    Number and index are sorted as one 32-bit number where they fit into it: a sort that carries nothing along is several
    times as fast.
    """
    (length,) = key_L.shape
    bits = max(1, (length - 1).bit_length())
    if bound > 1 << (32 - bits):
        return jnp.argsort(key_L, stable=True).astype(jnp.int32)
    both_L = (key_L.astype(jnp.uint32) << bits) | jnp.arange(length, dtype=jnp.uint32)
    return (jnp.sort(both_L) & ((1 << bits) - 1)).astype(jnp.int32)


def random_order(key: Array, length: int) -> Array:
    """All indices below `length` in random order. Two draw the same number, and stay in order, with odds of L / 2^32."""
    bits = max(1, (length - 1).bit_length())
    return order_by(jax.random.bits(key, (length,)) >> bits, 1 << (32 - bits))


def per_segment(key: Array, start_L: Array, length: int) -> Array:
    """One uniform draw per document, repeated over its tokens."""
    return jax.random.uniform(key, (length,))[start_L]


def gather(x_BxLx: Array, index_BxL: Array) -> Array:
    """Along L: from window order to slot order by `Order.token_index`, or from any order to another."""
    return jnp.take_along_axis(x_BxLx, index_BxL.reshape(*index_BxL.shape, *[1] * (x_BxLx.ndim - 2)), axis=1)
