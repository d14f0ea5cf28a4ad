"""Masked diffusion: which tokens of a window are masked, and what its rows see then.

In generation order it is two groups, what is seen and what is masked, with one difference to `a3jax.ordering.arrange`: all
rows see all of their document, those of masked tokens too. There is one stream, so slots are the window's own places, and a
row's range of keys is [start of its document, end of its document).

    row t   reads x_t, or the learned vector where that is masked, and predicts x_{t+1}

**Blocks.** In block diffusion (arXiv 2503.09573) the places of a window fall into blocks of S, which come from left to right,
and each is a diffusion of its own given those before it. There is a clean copy of the window, which the blocks behind are
predicted from, and a noisy one, whose rows see the clean blocks before their own and their own noisy one. That is the one
place where a row sees two ranges, for no line of all these slots makes every row's one: each noisy block would have to stand
beside the same clean ones.

    clean row t   [start of its document, end of its block)
    noisy row t   [start of its document, start of its block) of the clean copy, and its own block of the noisy one

The first token of a block is predicted by the clean row before it, all others by the noisy row before them. So blocks of one
are plain autoregression, and one block for a whole window is masked diffusion.

**The draw.** Of the n tokens of a document, or of its part of a block, that are neither given nor padding, m are masked, m
drawn evenly from 1 to n, and which of them too. A masked token's loss has the weight n / m: the share t = m / n is uniform,
and weighted 1 / t. The expected loss is the negative evidence lower bound (ELBO). It is that of the usual form, where each
token is masked with odds t uniform in [0, 1]: there a set of m tokens counts with the integral of t^(m-1) (1-t)^(n-m),
which is 1 / (m C(n, m)), and here with (1 / n) (1 / C(n, m)) (n / m), the same. This form never draws an empty set, and no
weight is above n (arXiv 2502.09992 evaluates so). Every document or block draws its own m, since it is predicted by itself.

The bound is also the mean over all orders, block by block where there are blocks, of the log-likelihood of predicting one
token after the other, so it is at most the log-likelihood of the model that draws an order first (Jensen's inequality).

Everything here is a pure function of its arguments; draws come from a key made of (seed, step, example).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.ordering.windows import order_by, padding_last, per_segment, random_order, segment_bounds


class MaskedRows(NamedTuple):
    """The rows of one stream over a window with masked tokens. Every array is B x R."""

    token_index: Array
    """Where in the window stands the token that the row reads."""
    masked: Array
    """Whether that is hidden from it."""
    position: Array
    """RoPE position, counted from the document's start."""
    start: Array
    """The first row that it sees."""
    end: Array
    """The row after the last one that it sees."""
    own: tuple[Array, Array] | None = None
    """Start and end of a second range of rows, behind the first."""


class Masking(NamedTuple):
    """A batch of windows with masked tokens. Every array is B x L, in window order, but for those of rows."""

    rows: MaskedRows
    row: Array
    """The row that predicts a token; anything for a document's first."""
    masked: Array
    """Whether the token is hidden."""
    weight: Array
    """float32: of a masked token's loss; 0 for others."""
    predicted: Array
    """Whether the token may be masked: neither given nor padding. The expected loss is about all of these."""


@functools.partial(jax.jit, static_argnames="block")
def draw_masking(keys_B: Array, segment_BxL: Array, reach: float | Array = 1.0, block: int = 0) -> Masking:
    """The masks of a batch of windows, one key each, with `block` places to a block; 0 is masked diffusion without any.

    `reach`, of the latter, is the share of what stands on its right that a row sees: at 0 rows see what those of the
    autoregressive model do. A token whose segment is a negative number is given: context that another window predicts.
    """

    def one(key: Array, segment_L: Array) -> Masking:
        length = segment_L.shape[0]
        index_L = jnp.arange(length)
        start_L, end_L = segment_bounds(padding_last(jnp.abs(segment_L)))
        unit = start_L, end_L
        if block:
            first_L = index_L // block * block
            unit = jnp.maximum(start_L, first_L), jnp.minimum(end_L, first_L + block)
        free_L = (segment_L > 0) & (index_L > start_L)
        masked_L, weight_L = _draw(key, free_L, *unit)
        padding_L = segment_L == 0
        if block:
            rows = _two_copies(masked_L, padding_L, start_L, *unit)
            row_L = jnp.where(index_L == unit[0], index_L - 1, length + index_L - 1)
        else:
            ahead_L = jnp.floor(reach * (end_L - index_L - 1)).astype(jnp.int32)
            sees_to_L = jnp.where(padding_L, start_L, index_L + 1 + ahead_L)
            rows, row_L = MaskedRows(index_L, masked_L, index_L - start_L, start_L, sees_to_L), index_L - 1
        return Masking(rows, jnp.maximum(row_L, 0), masked_L, weight_L, free_L)

    return jax.vmap(one)(keys_B, segment_BxL)


def _draw(key: Array, free_L: Array, start_L: Array, end_L: Array) -> tuple[Array, Array]:
    """What is masked of the free tokens of each part of a window, and the weight of its loss; parts are [start, end)."""
    (length,) = free_L.shape
    index_L = jnp.arange(length)
    before_L = jnp.cumsum(free_L) - free_L
    free_count_L = (before_L + free_L)[end_L - 1] - before_L[start_L]
    size_key, order_key = jax.random.split(key)
    drawn_L = jnp.floor(per_segment(size_key, start_L, length) * free_count_L).astype(jnp.int32)
    masked_count_L = 1 + jnp.minimum(drawn_L, free_count_L - 1)
    random_L = random_order(order_key, length)
    by_part_L = random_L[order_by((2 * start_L + ~free_L)[random_L], 2 * length)]  # free ones first
    rank_L = jnp.zeros_like(index_L).at[by_part_L].set(index_L) - start_L
    masked_L = free_L & (rank_L < masked_count_L)
    return masked_L, jnp.where(masked_L, free_count_L / jnp.maximum(masked_count_L, 1), 0.0)


def _two_copies(masked_L: Array, padding_L: Array, start_L: Array, block_start_L: Array, block_end_L: Array) -> MaskedRows:
    """The rows of the clean copy, then those of the noisy one."""
    (length,) = masked_L.shape
    index_L, nothing_L = jnp.arange(length), jnp.zeros_like(start_L)

    def both(clean_L: Array, noisy_L: Array) -> Array:
        return jnp.concatenate([clean_L, noisy_L])

    def seen(end_L: Array) -> Array:
        return jnp.where(padding_L, start_L, end_L)

    own = both(nothing_L, length + block_start_L), both(nothing_L, length + jnp.where(padding_L, block_start_L, block_end_L))
    return MaskedRows(
        token_index=both(index_L, index_L),
        masked=both(jnp.zeros_like(masked_L), masked_L),
        position=both(index_L - start_L, index_L - start_L),
        start=both(start_L, start_L),
        end=both(seen(block_end_L), seen(block_start_L)),
        own=own,
    )
