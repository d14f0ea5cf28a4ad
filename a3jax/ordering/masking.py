"""Masked diffusion: which tokens of a window are masked, and what its rows see then.

In generation order it is two groups, what is seen and what is masked, with one difference to `a3jax.ordering.arrange`: all
rows see all of their document, those of masked tokens too. There is one stream, so slots are the window's own places, and a
row's range of keys is [start of its document, end of its document).

    row t   reads x_t, or the learned vector where that is masked, and predicts x_{t+1}

**The draw.** Of the n tokens of a document that are neither given nor padding, m are masked, m drawn evenly from 1 to n, and
which of them too. A masked token's loss has the weight n / m: the share t = m / n is uniform, and weighted 1 / t. The
expected loss is the negative evidence lower bound (ELBO). It is that of the usual form, where each token is masked with odds
t uniform in [0, 1]: there a set of m tokens counts with the integral of t^(m-1) (1-t)^(n-m), which is 1 / (m C(n, m)), and
here with (1 / n) (1 / C(n, m)) (n / m), the same. This form never draws an empty set, and no weight is above n (arXiv
2502.09992 evaluates so). Every document draws its own m, since it sees nothing but itself.

The bound is also the mean over all orders of the log-likelihood of predicting one token after the other, so it is at most
the log-likelihood of the model that draws an order first (Jensen's inequality).

Everything here is a pure function of its arguments; draws come from a key made of (seed, step, example).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.ordering.windows import order_by, padding_last, per_segment, random_order, segment_bounds


class Masking(NamedTuple):
    """A batch of windows with masked tokens. Every array is B x L, in window order."""

    position: Array
    """RoPE position, counted from the document's start."""
    start: Array
    """The first place that the row sees."""
    end: Array
    """The place after the last one that it sees."""
    masked: Array
    """Whether the token is hidden."""
    weight: Array
    """float32: of a masked token's loss; 0 for others."""
    predicted: Array
    """Whether the token may be masked: neither given nor padding. The expected loss is about all of these."""


def draw_masking(keys_B: Array, segment_BxL: Array, reach: float | Array = 1.0) -> Masking:
    """The masks of a batch of windows, one key each.

    `reach` is the share of what stands on its right that a row sees: at 0 rows see what those of the autoregressive model
    do. A token whose segment is a negative number is given: context that another window predicts.
    """

    def one(key: Array, segment_L: Array) -> Masking:
        length = segment_L.shape[0]
        index_L = jnp.arange(length)
        start_L, end_L = segment_bounds(padding_last(jnp.abs(segment_L)))
        free_L = (segment_L > 0) & (index_L > start_L)
        before_L = jnp.cumsum(free_L) - free_L
        free_count_L = (before_L + free_L)[end_L - 1] - before_L[start_L]

        size_key, order_key = jax.random.split(key)
        drawn_L = jnp.floor(per_segment(size_key, start_L, length) * free_count_L).astype(jnp.int32)
        masked_count_L = 1 + jnp.minimum(drawn_L, free_count_L - 1)
        random_L = random_order(order_key, length)
        by_document_L = random_L[order_by((2 * start_L + ~free_L)[random_L], 2 * length)]  # free ones first
        rank_L = jnp.zeros_like(index_L).at[by_document_L].set(index_L) - start_L
        masked_L = free_L & (rank_L < masked_count_L)

        ahead_L = jnp.floor(reach * (end_L - index_L - 1)).astype(jnp.int32)
        return Masking(
            position=index_L - start_L,
            start=start_L,
            end=jnp.where(segment_L == 0, start_L, index_L + 1 + ahead_L),
            masked=masked_L,
            weight=jnp.where(masked_L, free_count_L / jnp.maximum(masked_count_L, 1), 0.0),
            predicted=free_L,
        )

    return jax.vmap(one)(keys_B, segment_BxL)
