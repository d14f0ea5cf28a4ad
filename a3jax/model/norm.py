"""Normalization of rows, in the kinds that families have: which of them is `ModelConfig.norm`.

rms         x / rms(x) * weight          RMSNorm (Zhang & Sennrich, arXiv 1910.07467)
rms_offset  x / rms(x) * (1 + weight)    the same, whose weights decay towards 1
layer       (x - mean(x)) / std(x)       LayerNorm, which has no weights here
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.config import ModelConfig
from a3jax.model.parameters import parameter


def norm_weight(config: ModelConfig, axes: str, rngs: nnx.Rngs) -> nnx.Param | None:
    """The weight of a norm, which does nothing at first; None in a model whose norms have none."""
    if config.norm == "layer":
        return None
    initial = nnx.initializers.zeros if config.norm == "rms_offset" else nnx.initializers.ones
    return parameter(config, axes, "norm", initial, rngs)


def normalize(config: ModelConfig, x: Array, weight: nnx.Param | None, axes: tuple[int, ...] = (-1,)) -> Array:
    """Normalize over `axes`, in float32; dtype kept. `weight` is that of `norm_weight`, as one layer has it."""
    x32 = x.astype(jnp.float32)
    if config.norm == "layer":
        x32 = x32 - jnp.mean(x32, axis=axes, keepdims=True)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + config.norm_eps)
    if weight is None:
        return normed.astype(x.dtype)
    own = weight[...].astype(x.dtype)
    if config.norm == "rms_offset":  # 1 + weight has more digits than bfloat16
        return (normed * (1 + own.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * own
