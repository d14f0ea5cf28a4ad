"""Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated, with Llama-3 frequency scaling."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import ModelConfig


def frequencies(config: ModelConfig) -> np.ndarray:
    """E/2 angles per position, float32. Llama-3 scaling slows long waves and blends between (Llama 3.1 release)."""
    half = config.head_width // 2
    rate = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float64) / half)
    if (scaling := config.rope_scaling) is not None:
        turns = scaling.original_context * rate / (2 * math.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        rate = rate * (keep + (1 - keep) / scaling.factor)
    return rate.astype(np.float32)


def angles(config: ModelConfig, position_BxR: Array) -> tuple[Array, Array]:
    """Cosines and sines of each row's rotation, B x R x 1 x E/2 float32."""
    angle = position_BxR[..., None, None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxRxHxE: Array, cos: Array, sin: Array) -> Array:
    """Rotate every head by its row's `angles`; keeps the dtype, computes in float32."""
    a, b = jnp.split(x_BxRxHxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxRxHxE.dtype)
