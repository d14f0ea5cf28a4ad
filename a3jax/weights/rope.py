"""Rotary embeddings in `config.json`, both ways: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters` (5).

Where both speak, transformers takes `rope_scaling` for all of it, and the base that stands beside it. Families whose sliding
layers have an embedding of their own have one object a kind of layer in `rope_parameters`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from a3jax.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ModelConfig,
    Rope,
    RopeScaling,
    YarnScaling,
)
from a3jax.errors import UserError, check_count, check_positive, shown
from a3jax.weights.families import Family

FULL, LOCAL = "full_attention", "sliding_attention"
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_LOCAL_BASE = "rope_local_base_freq"


def from_hf(config: Mapping[str, Any], family: Family, head_width: int, where: str) -> dict[str, Any]:
    """The fields of `ModelConfig` that say how positions enter, and `context`.

    Raises `UserError` for what is not supported.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name), dict | None):
            raise UserError(f"{where}: {name} is {shown(config[name])}; it must be an object")
    context = check_count(f"{where}: max_position_embeddings", config.get("max_position_embeddings"))
    name, rope, local = _objects(config, family, where)
    turning = _turning(config, rope, head_width, where)
    theta = _base(rope, config.get("rope_theta", family.rope_base), where)
    scaling = _scaling(config, rope, name, family, context, where)
    if isinstance(scaling, LongScaling):
        context = min(context, scaling.original_context)
    result = {"context": context, "rope_theta": theta, "rope_scaling": scaling, "rotary_width": turning}
    if family.local_rope_base is None:
        return result
    base = config.get(_LOCAL_BASE, config.get("rope_theta", family.rope_base)) if name == "rope_scaling" else None
    silent = config.get(_LOCAL_BASE, family.local_rope_base) if base is None else base
    own = Rope(_base(local, silent, where), _scaling(config, local, "rope_parameters", family, context, where))
    return result | {"local_rope": own}


def _objects(config: Mapping[str, Any], family: Family, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The field that speaks of the rotary embedding, what it says, and what it says of that of sliding layers."""
    given: dict[str, Any] = config.get("rope_parameters") or {}
    by_kind = any(isinstance(value, dict) for value in given.values())
    if by_kind and family.local_rope_base is None:
        raise UserError(f"{where}: rope_parameters by layer type is not supported for model_type '{family.name}'")
    if by_kind:
        full, local = given.get(FULL) or {}, given.get(LOCAL) or {}
        return "rope_parameters", full | (config.get("rope_scaling") or {}), local
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    return name, config.get(name) or dict(family.rope), {}


def _base(rope: Mapping[str, Any], silent: Any, where: str) -> float:
    return check_positive(f"{where}: rope_theta", rope.get("rope_theta", silent))


def _turning(config: Mapping[str, Any], rope: Mapping[str, Any], head_width: int, where: str) -> int | None:
    """How many numbers of a head turn; None for all."""
    factor = rope.get(_PARTIAL, config.get(_PARTIAL))
    if factor is None or factor == 1:
        return None
    turning = int(head_width * check_positive(f"{where}: {_PARTIAL}", factor))
    if not (0 < turning <= head_width and turning % 2 == 0):
        raise UserError(
            f"{where}: {_PARTIAL} {shown(factor)} turns {turning} of {head_width} numbers, which is not supported"
        )
    return turning


def _scaling(
    config: Mapping[str, Any], rope: Mapping[str, Any], name: str, family: Family, context: int, where: str
) -> RopeScaling | None:
    """How one rotary embedding is stretched, as `name` has it."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if family.original_context is not None and kind in ("su", "yarn"):  # as older files of Phi-3 call it
        kind = "longrope"
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"{where}: rope_type {shown(kind)} is not supported; supported are default, {', '.join(_KINDS)}")
    needed, make = _KINDS[kind]
    for field in needed:
        if rope.get(field) is None:
            raise UserError(f"{where}: RoPE settings cannot be read: {name} has no '{field}'")
    outside = config.get(_ORIGINAL, family.original_context)
    lengths = [length for length in (rope.get(_ORIGINAL), outside) if length is not None]
    if lengths[1:] and lengths[0] != lengths[1]:
        raise UserError(f"{where}: {_ORIGINAL} is {shown(lengths[1])}, and {shown(lengths[0])} in {name}; make them one")
    try:
        original = check_count(_ORIGINAL, lengths[0] if lengths else context)
        return make(rope, original, context)
    except UserError as error:
        raise UserError(f"{where}: {name}: {error}") from None


def _number(rope: Mapping[str, Any], name: str, silent: float | None = None) -> float:
    value = silent if rope.get(name) is None else rope[name]
    return check_positive(name, value)


def _linear(rope: Mapping[str, Any], original: int, context: int) -> RopeScaling:
    return LinearScaling(_number(rope, "factor"))


def _dynamic(rope: Mapping[str, Any], original: int, context: int) -> RopeScaling:
    return DynamicScaling(_number(rope, "factor"), context)


def _llama3(rope: Mapping[str, Any], original: int, context: int) -> RopeScaling:
    factor, low, high = (_number(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return Llama3Scaling(factor, low, high, original)


def _yarn(rope: Mapping[str, Any], original: int, context: int) -> RopeScaling:
    factor = _number(rope, "factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        silent = _yarn_attention(factor, _number(rope, "mscale")) / _yarn_attention(factor, _number(rope, "mscale_all_dim"))
    else:
        silent = _yarn_attention(factor)
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise UserError(f"truncate is {shown(truncate)}; it must be true or false")
    betas = _number(rope, "beta_fast", 32), _number(rope, "beta_slow", 1)
    return YarnScaling(factor, original, *betas, _number(rope, "attention_factor", silent), truncate)


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _long(rope: Mapping[str, Any], original: int, context: int) -> RopeScaling:
    factor = _number(rope, "factor", context / original)
    silent = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    for name in ("short_factor", "long_factor"):
        if not isinstance(rope[name], list):
            raise UserError(f"{name} is {shown(rope[name])}; it must be a list of numbers")
    short, long = (tuple(check_positive(name, x) for x in rope[name]) for name in ("short_factor", "long_factor"))
    return LongScaling(short, long, original, _number(rope, "attention_factor", silent))


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any], int, int], RopeScaling]]] = {
    "linear": (("factor",), _linear),
    "dynamic": (("factor",), _dynamic),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), _llama3),
    "yarn": (("factor",), _yarn),
    "longrope": (("short_factor", "long_factor"), _long),
}
"""By `rope_type`: what must be there, and what makes a scaling of an object, the original context and the context."""


def to_hf(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The fields of `config.json`, in the dialect that every version of transformers reads."""
    scaling = config.rope_scaling
    context = scaling.original_context if isinstance(scaling, DynamicScaling) else config.context
    result: dict[str, Any] = {"max_position_embeddings": context}
    result |= {"rope_theta": config.rope_theta, "rope_scaling": scaling_to_hf(scaling)}
    if family.original_context is not None:
        result[_ORIGINAL] = scaling.original_context if isinstance(scaling, LongScaling) else family.original_context
    if config.rotary_width is not None:
        result[_PARTIAL] = partial_factor(config)
    if family.rope and scaling is None:  # silence would be another one
        result["rope_parameters"] = rope_to_hf(Rope(config.rope_theta))
    if config.local_rope is not None:
        ropes = {FULL: Rope(config.rope_theta, config.rope_scaling), LOCAL: config.local_rope}
        result["rope_parameters"] = {kind: rope_to_hf(rope) for kind, rope in ropes.items()}
        result[_LOCAL_BASE] = config.local_rope.theta
    return result


def partial_factor(config: ModelConfig) -> float:
    """The share of a head that turns, which times the head width is never less than `turning`."""
    factor = config.turning / config.head_width
    return factor if int(config.head_width * factor) == config.turning else math.nextafter(factor, 1)


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """One rotary embedding as `rope_parameters` has it."""
    return {"rope_type": "default", "rope_theta": rope.theta} | (scaling_to_hf(rope.scaling) or {})


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` field of `config.json`."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, original):
            own = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", **own, _ORIGINAL: original}
        case YarnScaling(factor, original, fast, slow, attention, truncate):
            own = {"factor": factor, "beta_fast": fast, "beta_slow": slow, "attention_factor": attention}
            return {"rope_type": "yarn", **own, "truncate": truncate, _ORIGINAL: original}
        case LongScaling(short, long, original, attention):
            own = {"short_factor": list(short), "long_factor": list(long), "attention_factor": attention}
            return {"rope_type": "longrope", **own, _ORIGINAL: original}
