"""Attention sinks (gpt-oss): a learned logit of every head, which takes its share of each row's softmax and has no value.

Keys whose scores have the log-sum-exp l keep exp(l) / (exp(l) + exp(s)) of the weight beside a sink s. So every path computes
attention as if there were none and tells l, and sinks are here alone, with their gradients.
"""

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.attention.blocks import Attended


def beside_sinks(attended: Attended, sink_H: Array) -> Array:
    """What rows see when every head has a sink, B x R x H x E; a row that sees no key stays zero."""
    assert attended.lse is not None, "splash has no sinks"
    share_BxRxH = jax.nn.sigmoid(attended.lse - sink_H.astype(jnp.float32))
    return (attended.out * share_BxRxH[..., None]).astype(attended.out.dtype)
