"""Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated, in all the ways in which it is stretched.

Frequencies belong to a model and not to a text, so that keys once in a cache stay right: where a kind of scaling goes by
length, it is the model's context that counts. Formulas are those of transformers, and of the papers that
`a3jax.config.rope` names.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, ModelConfig, Rope, YarnScaling


def angles(config: ModelConfig, ropes: tuple[Rope | None, ...], position_BxR: Array) -> tuple[Array, Array]:
    """Cosines and sines of each row's rotation under each of J embeddings, B x R x J x `turning` / 2 float32.

    None is an embedding that turns nothing.
    """
    position_BxRx1x1 = position_BxR[..., None, None].astype(jnp.float32)
    angle = position_BxRx1x1 * np.stack([frequencies(config, rope) for rope in ropes])
    factor_Jx1 = np.array([[1.0 if rope is None else attention_factor(rope)] for rope in ropes], np.float32)
    if (factor_Jx1 == 1).all():
        return jnp.cos(angle), jnp.sin(angle)
    return jnp.cos(angle) * factor_Jx1, jnp.sin(angle) * factor_Jx1


def rotate(x_BxRxHxE: Array, cos: Array, sin: Array) -> Array:
    """Rotate every head by its row's `angles`, B x R x 1 x e; keeps the dtype, computes in float32.

    The first 2 e numbers of a head turn, the others stay.
    """
    x32, half = x_BxRxHxE.astype(jnp.float32), cos.shape[-1]
    a, b, still = x32[..., :half], x32[..., half : 2 * half], x32[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, still], axis=-1).astype(x_BxRxHxE.dtype)


def frequencies(config: ModelConfig, rope: Rope | None) -> np.ndarray:
    """Angles per position, `turning` / 2 float32."""
    half = config.turning // 2
    if rope is None:
        return np.zeros(half, np.float32)
    wave = np.arange(half, dtype=np.float64) / half
    return _scaled(rope.theta**-wave, wave, rope, config.context).astype(np.float32)


def attention_factor(rope: Rope) -> float:
    """What rotated queries and keys are multiplied with."""
    return rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling | LongScaling) else 1.0


def _scaled(rate: np.ndarray, wave: np.ndarray, rope: Rope, context: int) -> np.ndarray:
    """The frequencies `theta` ^ -`wave` as a scaling has them."""
    match rope.scaling:
        case None:
            return rate
        case LinearScaling(factor):
            return rate / factor
        case DynamicScaling(factor, original):
            stretch = factor * max(context, original) / original - (factor - 1)
            half = len(rate)
            return (rope.theta * stretch ** (half / (half - 1))) ** -wave if half > 1 else rate
        case Llama3Scaling(factor, low, high, original):
            keep = np.clip((original * rate / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
            return rate * (keep + (1 - keep) / factor)
        case YarnScaling() as scaling:
            keep = _kept_by_yarn(len(rate), rope.theta, scaling)
            return rate * (keep + (1 - keep) / scaling.factor)
        case LongScaling(short, long, original):
            return rate / np.array(long if context > original else short)


def _kept_by_yarn(half: int, theta: float, scaling: YarnScaling) -> np.ndarray:
    """How much of each frequency stays: all of short waves, nothing of long ones, falling by number of wave between."""

    def wave_of(turns: float) -> float:
        """The number of the wave that turns so often within the original context."""
        return half * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = wave_of(scaling.beta_fast), wave_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    return 1 - np.clip((np.arange(half) - low) / (high - low or 0.001), 0.0, 1.0)
