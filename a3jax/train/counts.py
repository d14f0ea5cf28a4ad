"""What a step's windows held: tokens, rows, and the keys that rows see, counted on the device from the orders drawn.

Counts are sums, so those of micro-batches and of devices add up; they travel with the step's other metrics and cost no wait.
Padding is in none of them. A row counts where a prediction of the step comes of it: the content of every token of a document,
and the query of every token that is predicted; those of given tokens are computed as well, and lead to nothing.
"""

from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array

from a3jax.config import Content
from a3jax.ordering import Masking, Order

Number = TypeVar("Number", Array, float)


class Counts(NamedTuple, Generic[Number]):
    """Sums over the windows of a step. On the device rows are int32, and keys float32: int32 may not hold them."""

    tokens: Number
    """Tokens of documents, given ones too; neither padding nor what is read again as context of another window's tokens."""
    predicted: Number
    """Those that count in the loss."""
    content: Number
    """Content rows: `tokens`, and what is read again as context."""
    content_keys: Number
    """Keys that content rows see."""
    query_keys: Number
    """Keys that the queries of predicted tokens see."""
    causal_keys: Number
    """Keys that content rows see where the same windows are read from left to right, as a model to learn from reads them."""


def counted(order: Order, segment_BxL: Array, content: Content) -> Counts[Array]:
    """The counts of windows, B x L, that are read in `order`; `segment` is theirs in window order (`a3jax.data.packing`)."""
    real_BxL = order.group_end > order.start
    return Counts(
        tokens=jnp.sum(segment_BxL > 0),
        predicted=jnp.sum(order.predicted),
        content=jnp.sum(real_BxL),
        content_keys=_sum(order.content_end(content) - order.start),
        query_keys=_sum(jnp.where(order.predicted, order.group_start - order.start, 0)),
        causal_keys=_sum(jnp.where(real_BxL, order.position + 1, 0)),
    )


def counted_masked(masking: Masking, segment_BxL: Array) -> Counts[Array]:
    """The same of windows with masked tokens, whose rows are content rows all."""
    rows = masking.rows
    keys_BxR = rows.end - rows.start + (0 if rows.own is None else rows.own[1] - rows.own[0])
    return Counts(
        tokens=jnp.sum(segment_BxL > 0),
        predicted=jnp.sum(masking.masked),
        content=jnp.sum(keys_BxR > 0),
        content_keys=_sum(keys_BxR),
        query_keys=jnp.zeros(()),
        causal_keys=jnp.zeros(()),  # there is no model to learn from
    )


def full_window(length: int, mask_block: int | None = None) -> Counts[float]:
    """A window that one document fills, nothing of it given: rows see half of all keys on average, those before them.

    In masked diffusion they see all keys, and half of the tokens are masked; in blocks there are two copies of the tokens.
    """
    keys = length * length / 2
    if mask_block == 0:
        return Counts(length, length / 2, length, 2 * keys, 0.0, 0.0)
    if mask_block:
        masked = length * (mask_block + 1) / (2 * mask_block)
        return Counts(length, masked, 2 * length, 2 * keys + length * mask_block, 0.0, 0.0)
    return Counts(length, length, length, keys, keys, keys)


def _sum(keys_BxL: Array) -> Array:
    return keys_BxL.astype(jnp.float32).sum()
