"""Soft caps (Gemma 2): numbers bent to stay within a bound, nearly themselves while they are small beside it."""

import jax.numpy as jnp
from jax import Array


def capped(x: Array, cap: float | None) -> Array:
    """cap tanh(x / cap), elementwise; `x` where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def cap_slope(y: Array, cap: float | None) -> Array | float:
    """By how much `y`, which is `capped(x)`, moves with x."""
    return 1.0 if cap is None else 1 - (y / cap) ** 2
