"""The reference: scores for every row and key, masked. Every other implementation is tested against this one."""

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.attention.blocks import Attended, Local, Range, near, visible
from a3jax.attention.cap import capped


def dense_attention(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    own: Range | None = None,
    cap: float | None = None,
    local: Local | None = None,
) -> Attended:
    """See `a3jax.attention.attend`. Holds B x H x R x L float32 scores."""
    B, R, H, E = query_BxRxHxE.shape
    L, K = key_BxLxKxE.shape[1:3]
    query_BxRxKxGxE = query_BxRxHxE.reshape(B, R, K, H // K, E)
    scores = jnp.einsum("brkge,blke->bkgrl", query_BxRxKxGxE, key_BxLxKxE, preferred_element_type=jnp.float32) * E**-0.5
    mask = visible(jnp.arange(L), start_BxR, end_BxR, own)[:, None, None]
    if local is not None:
        mask &= near(local.position[:, None], local.low, local.high)[:, None, None]
    # Finite, so that a row that sees nothing has no NaN in its gradient either; its uniform weights become zero below.
    scores = jnp.where(mask, capped(scores, cap), -1e30)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0).astype(value_BxLxKxE.dtype)
    if R * H < E * K:  # few rows: of the product's factors not the larger one, the values, is turned around
        out_BxKxGxRxE = jnp.einsum("bkgrl,blke->bkgre", weights, value_BxLxKxE)
        out_BxRxHxE = out_BxKxGxRxE.transpose(0, 3, 1, 2, 4).reshape(B, R, H, E)
    else:
        out_BxRxHxE = jnp.einsum("bkgrl,blke->brkge", weights, value_BxLxKxE).reshape(B, R, H, E)
    lse_BxHxR = jax.nn.logsumexp(scores, axis=-1).reshape(B, H, R)
    return Attended(out_BxRxHxE, lse_BxHxR.swapaxes(1, 2))
