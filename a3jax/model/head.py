"""The head: from the hidden state of a row to logits, in the one way that decoding, likelihood and the loss all have them."""

import jax.numpy as jnp
from jax import Array

from a3jax.attention.cap import capped
from a3jax.model.int8 import Int8, multiplied


def head_logits(hidden: Array, head_VxD: Array | Int8, cap: float | None) -> Array:
    """Logits of normalized hidden states, ... x D to ... x V float32, bent to stay within `cap` (`a3jax.attention.cap`)."""
    head_VxD = head_VxD.astype(hidden.dtype)
    if isinstance(head_VxD, Int8):
        return capped(multiplied(hidden, head_VxD, over=(1,)), cap)
    return capped(jnp.einsum("...d,vd->...v", hidden, head_VxD, preferred_element_type=jnp.float32), cap)
