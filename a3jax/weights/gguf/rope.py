"""How a rotary embedding is stretched, in GGUF: metadata, and tensors that divide its frequencies."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from a3jax.config import LinearScaling, Llama3Scaling, LongScaling, ModelConfig, Rope, RopeScaling, YarnScaling
from a3jax.errors import UserError, shown
from a3jax.model.rope import frequencies
from a3jax.weights.gguf.architectures import Architecture, truncates
from a3jax.weights.gguf.metadata import Metadata

_SCALING = "rope.scaling."
_DIVISORS = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (_DIVISORS, _SHORT, _LONG)
"""Those that are no weights, by name."""

_USUAL = {"yarn_log_multiplier": 0, "yarn_ext_factor": 1, "yarn_beta_fast": 32, "yarn_beta_slow": 1}
"""Of YaRN: not every release of llama.cpp computes otherwise when a file says so."""


def to_metadata(scaling: RopeScaling | None) -> dict[str, Any]:
    """What a file says of a scaling, by names behind that of the architecture."""
    match scaling:
        case LinearScaling(factor):
            said: dict[str, Any] = {"type": "linear", "factor": float(factor)}
        case YarnScaling(factor, original, _, _, attention):
            said = {"type": "yarn", "factor": float(factor), "original_context_length": original}
            said["attn_factor"] = attention / _own_attention(factor)
        case LongScaling(_, _, original, attention):
            said = {"type": "longrope", "original_context_length": original, "attn_factor": float(attention)}
        case _:
            said = {}
    return {_SCALING + name: value for name, value in said.items()}


def tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """By what a file divides frequencies: of Llama 3's scaling, which has no metadata, and of LongRoPE."""
    scaling = config.rope_scaling
    if isinstance(scaling, Llama3Scaling):
        return {_DIVISORS: divisors(config)}
    if isinstance(scaling, LongScaling):  # llama.cpp goes by the length of its own context, and we by the model's
        short = scaling.long_factors if config.context > scaling.original_context else scaling.short_factors
        return {_LONG: np.array(scaling.long_factors, np.float32), _SHORT: np.array(short, np.float32)}
    return {}


def from_file(
    metadata: Metadata, architecture: Architecture, found: Mapping[str, np.ndarray], config: ModelConfig
) -> ModelConfig:
    """The model with its scaling, from metadata and those of `TENSORS` that a file has.

    As llama.cpp reads them: a factor without a type scales linearly, by `scale_linear` in older files; one of 0 is none.
    Raises `UserError` for what it would compute and we do not.
    """
    scaling = _described(metadata, architecture, found, config)
    if _DIVISORS in found and (scaling is not None or (scaling := _of_llama_3(config, found[_DIVISORS])) is None):
        raise UserError(f"{metadata.path}: {_DIVISORS} is not the scaling of Llama 3; import the model's folder")
    if scaling is not None and not isinstance(scaling, architecture.scalings):
        kind = type(scaling).__name__
        raise UserError(f"{metadata.path}: RoPE scaling of this kind ({kind}) is not that of a file of '{architecture.name}'")
    attention = isinstance(scaling, YarnScaling | LongScaling)
    name = f"{architecture.name}.{_SCALING}attn_factor"
    if not attention and (value := metadata.get(name, 1)) != 1:
        raise UserError(f"{metadata.path}: metadata '{name}' is {shown(value)}, which is not supported")
    if isinstance(scaling, LongScaling):
        config = replace(config, context=min(config.context, scaling.original_context))
    return replace(config, rope_scaling=scaling)


def _described(
    metadata: Metadata, architecture: Architecture, found: Mapping[str, np.ndarray], config: ModelConfig
) -> RopeScaling | None:
    prefix = f"{architecture.name}.{_SCALING}"

    def number(name: str, silent: float | None = None) -> float:
        return decimal(metadata.need(prefix + name, float, silent))

    older = f"{architecture.name}.rope.scale_linear"
    name = prefix + "factor" if metadata.get(prefix + "factor") is not None else older
    kind = metadata.get(prefix + "type", "longrope" if _LONG in found else "linear")
    original = metadata.need(prefix + "original_context_length", int, config.context)
    if kind == "none" or (kind == "linear" and metadata.get(name, 0) in (0, 1)):
        return None
    if kind == "linear":
        return LinearScaling(decimal(metadata.need(name, float)))
    if kind == "yarn" and all(metadata.get(prefix + more, usual) == usual for more, usual in _USUAL.items()):
        factor = number("factor")
        attention = number("attn_factor", 1.0) * _own_attention(factor)
        return YarnScaling(factor, original, 32.0, 1.0, attention, truncates(architecture))
    if kind == "longrope" and _LONG in found and _SHORT in found:
        short, long = (tuple(map(decimal, found[name].tolist())) for name in (_SHORT, _LONG))
        return LongScaling(short, long, original, number("attn_factor", 1.0))
    what = f"RoPE scaling inside a GGUF file ({shown(kind)}, factor {shown(metadata.get(name, 0))})"
    raise UserError(f"{metadata.path}: {what} is not supported; import the model's folder")


def _own_attention(factor: float) -> float:
    """What llama.cpp multiplies rotated queries and keys with under YaRN, beside the factor that a file says."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def divisors(config: ModelConfig) -> np.ndarray:
    """By what Llama 3's scaling divides every frequency, E/2; GGUF stores these and not the scaling."""
    return frequencies(config, Rope(config.rope_theta)) / frequencies(config, Rope(config.rope_theta, config.rope_scaling))


def _of_llama_3(config: ModelConfig, found: np.ndarray) -> Llama3Scaling | None:
    """The scaling that has these divisors, if it is that of a Llama 3 release; else None."""
    if found.shape != (config.head_width // 2,) or not (np.isfinite(found) & (found > 0)).all():
        return None
    # The longest wave is divided by the whole factor.
    scaling = Llama3Scaling(float(found.max()), 1.0, 4.0, 8192)
    expected = divisors(replace(config, rope_scaling=scaling))
    return scaling if np.allclose(found, expected, rtol=1e-3) else None


def decimal(value: float) -> float:
    """The decimal that was meant by a float32, not its neighbour."""
    return float(str(np.float32(value)))
