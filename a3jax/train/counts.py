"""What a step's windows held: tokens, rows, and the keys that rows see, counted on the device from the orders drawn.

Counts are sums, so those of micro-batches and of devices add up; they travel with the step's other metrics and cost no wait.
Padding is in none of them. A row counts where a prediction of the step comes of it: the content of every token of a document,
and the query of every token that is predicted; those of given tokens are computed as well, and lead to nothing. In a layer of
local attention a row has the keys within its window, however many are computed and hidden.
"""

from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.attention.blocks import Local, Range, near, visible
from a3jax.config import ModelConfig
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
    local_content_keys: Number
    """Of `content_keys` those that local attention sees; 0 where the model has none. So are the next two."""
    local_query_keys: Number
    local_causal_keys: Number


def counted(order: Order, segment_BxL: Array, model: ModelConfig) -> Counts[Array]:
    """The counts of windows, B x L, that are read in `order`; `segment` is theirs in window order (`a3jax.data.packing`)."""
    real_BxL, window = order.group_end > order.start, model.local_window
    content_end_BxL = order.content_end(model.content)
    query_end_BxL = jnp.where(order.predicted, order.group_start, order.start)
    causal_BxL = jnp.where(real_BxL, order.position + 1, 0)
    return Counts(
        tokens=jnp.sum(segment_BxL > 0),
        predicted=jnp.sum(order.predicted),
        content=jnp.sum(real_BxL),
        content_keys=_sum(content_end_BxL - order.start),
        query_keys=_sum(query_end_BxL - order.start),
        causal_keys=_sum(causal_BxL),
        local_content_keys=_local(window, order.position, order.position, order.start, content_end_BxL),
        local_query_keys=_local(window, order.query_position, order.position, order.start, query_end_BxL),
        local_causal_keys=jnp.zeros(()) if window is None else _sum(jnp.minimum(causal_BxL, window)),
    )


def counted_masked(masking: Masking, segment_BxL: Array, model: ModelConfig) -> Counts[Array]:
    """The same of windows with masked tokens, whose rows are content rows all."""
    rows, nothing = masking.rows, jnp.zeros(())
    keys_BxR = rows.end - rows.start + (0 if rows.own is None else rows.own[1] - rows.own[0])
    return Counts(
        tokens=jnp.sum(segment_BxL > 0),
        predicted=jnp.sum(masking.masked),
        content=jnp.sum(keys_BxR > 0),
        content_keys=_sum(keys_BxR),
        query_keys=nothing,
        causal_keys=nothing,  # there is no model to learn from
        local_content_keys=_local(model.local_window, rows.position, rows.position, rows.start, rows.end, rows.own),
        local_query_keys=nothing,
        local_causal_keys=nothing,
    )


def full_window(length: int, mask_block: int | None = None, local_window: int | None = None) -> Counts[float]:
    """A window that one document fills, nothing of it given: rows see half of all keys on average, those before them.

    Within a local window too: of two tokens one comes before the other, in whatever order. In masked diffusion rows see all
    keys, and half of the tokens are masked; in blocks there are two copies of the tokens, which see the same number.
    """
    keys, local = length * length / 2, _pairs(length, length, local_window) / 2
    if mask_block == 0:
        return Counts(length, length / 2, length, 2 * keys, 0.0, 0.0, 2 * local, 0.0, 0.0)
    if mask_block:
        masked = length * (mask_block + 1) / (2 * mask_block)
        seen = [2 * _pairs(length, mask_block, window) for window in (length, local_window)]
        return Counts(length, masked, 2 * length, seen[0], 0.0, 0.0, seen[1], 0.0, 0.0)
    return Counts(length, length, length, keys, keys, keys, local, local, local)


def without_windows(counts: Counts[float]) -> Counts[float]:
    """The same, but for local attention that goes over all keys and hides those that are too far away."""
    return counts._replace(
        local_content_keys=counts.content_keys,
        local_query_keys=counts.query_keys,
        local_causal_keys=counts.causal_keys,
    )


def _pairs(length: int, block: int, window: int | None) -> float:
    """Keys within a window of rows that see the blocks before their own, and their own; 0 without a window."""
    if window is None:
        return 0.0
    place_L = np.arange(length)
    end_L = np.minimum((place_L // block + 1) * block, length)
    return float((np.minimum(place_L + 1, window) + np.minimum(end_L - place_L, window) - 1).sum())


def _local(
    window: int | None, row_BxR: Array, key_BxR: Array, start_BxR: Array, end_BxR: Array, own: Range | None = None
) -> Array:
    """Keys of their ranges that rows see in a window, from the positions of both.

    Every pair is looked at, which costs a thousandth of the attention between them and holds nothing of that size.
    """
    if window is None:
        return jnp.zeros(())
    local = Local.within(window, row_BxR, key_BxR)
    seen = visible(jnp.arange(key_BxR.shape[1]), start_BxR, end_BxR, own)
    return jnp.sum(seen & near(local.position[:, None], local.low, local.high), dtype=jnp.float32)


def _sum(keys_BxL: Array) -> Array:
    return keys_BxL.astype(jnp.float32).sum()
