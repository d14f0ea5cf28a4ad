"""GGUF's metadata of a model and `ModelConfig`, both ways, by the row of its architecture."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from a3jax.config import Experts, ModelConfig, Rope
from a3jax.errors import UserError, check_count, shown
from a3jax.weights.configuration import ACTIVATIONS
from a3jax.weights.families import ROPE_BASE, Family, family_of
from a3jax.weights.gguf import rope
from a3jax.weights.gguf.architectures import (
    EXPERT_COUNT,
    WINDOW,
    Architecture,
    local_layers,
    period,
    score_scale,
    unrotated_layers,
)
from a3jax.weights.gguf.metadata import Metadata
from a3jax.weights.gguf.rope import decimal

_FIELDS = {
    "context": "context_length",
    "width": "embedding_length",
    "ff_width": "feed_forward_length",
    "layers": "block_count",
    "query_heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_width": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "vocab": "vocab_size",
}
"""Field of `ModelConfig` -> metadata, behind the architecture's name."""
_EPSILON, _EPSILON_OF_LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_EXPERTS = {"count": EXPERT_COUNT, "active": "expert_used_count"}
"""The same of `Experts`."""
_EXPERT_WIDTH = "expert_feed_forward_length"
"""Metadata that says the width of an expert in place of `feed_forward_length`."""
_VALUE_WIDTH, _TURNING = "attention.value_length", "rope.dimension_count"
_PERIOD, _LOCAL_BASE = "attention.sliding_window_pattern", "rope.freq_base_swa"


def to_metadata(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """All that a file says of a model, name -> number or text. Local layers that a row has not are left to its context."""
    said: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    said |= {_epsilon(config.norm): config.norm_eps, _VALUE_WIDTH: config.head_width, _TURNING: config.turning}
    if config.experts is not None:
        said |= {theirs: getattr(config.experts, ours) for ours, theirs in _EXPERTS.items()}
        said[_EXPERT_WIDTH] = config.ff_width
    for ours, theirs in architecture.numbers.items():
        value = getattr(config, ours)
        if ours == "attention_scale" and value is None:
            value = score_scale(architecture, config)
        said |= {} if value is None else {theirs: float(value)}
    if config.local_window is not None and not architecture.slides:  # within which full attention is the same
        said["context_length"] = min(config.context, config.local_window)
    elif architecture.slides:
        said |= {_PERIOD: period(config)} | ({} if config.local_window is None else {WINDOW: config.local_window})
    if architecture.local_base and config.local_rope is not None:
        said[_LOCAL_BASE] = config.local_rope.theta
    return {f"{architecture.name}.{name}": value for name, value in (said | rope.to_metadata(config.rope_scaling)).items()}


def from_metadata(
    metadata: Metadata, architecture: Architecture, tensors: Collection[str], waves: Mapping[str, np.ndarray]
) -> ModelConfig:
    """A model from a file's metadata, the names of its tensors, and those that are of its rotary embedding.

    Raises `UserError` for metadata by which llama.cpp computes what we do not, and for what is missing or no number.
    """
    prefix, family = architecture.name, family_of(architecture.families[0])
    norm = family.features.get("norm", "rms")
    if (value := metadata.get(f"{prefix}.attention.causal", True)) is not True:
        raise UserError(f"{metadata.path}: metadata '{prefix}.attention.causal' is {shown(value)}, which is not supported")

    def number(name: str, kind: type = int, silent: Any = None) -> Any:
        value = metadata.need(f"{prefix}.{name}", kind, silent)
        return decimal(value) if kind is float else value

    def field(ours: str, silent: Any = None) -> int:
        return int(number(_FIELDS[ours], silent=silent))

    heads, width, layers = field("query_heads"), field("width"), field("layers")
    kv_heads, head_width = field("kv_heads", heads), field("head_width", width // heads)
    if heads % kv_heads:
        raise UserError(f"{metadata.path}: {heads} query heads cannot share {kv_heads} key-value heads")
    turning = number(_TURNING, silent=head_width)
    for name, equal in {_VALUE_WIDTH: True, _TURNING: not architecture.partial}.items():
        if equal and metadata.get(f"{prefix}.{name}", head_width) != head_width:
            raise UserError(f"{metadata.path}: metadata '{prefix}.{name}' is not the head width, which is not supported")
    ff_width = field("ff_width")
    listed = min(layers, len(tensors))  # no more than there can be, before they are listed
    made: dict[str, Any] = {
        "vocab": field("vocab", len(metadata.need("tokenizer.ggml.tokens", list))),
        "ff_width": ff_width if architecture.normalized is None else number(_EXPERT_WIDTH, silent=ff_width),
        "context": field("context"),
        "norm_eps": number(_epsilon(norm), float),
        "rope_theta": number(_FIELDS["rope_theta"], float, ROPE_BASE),
        "rotary_width": None if turning == head_width else turning,
        "tied_head": "lm_head.weight" not in tensors,
        "activation": ACTIVATIONS[family.activation],
        "embedding_scale": width**0.5 if family.scaled_embedding else 1.0,
        "experts": _experts(metadata, architecture, family),
        "start_token": metadata.token("bos"),
        "end_tokens": _end_tokens(metadata),
        "unrotated_layers": unrotated_layers(family.name, listed),
    }
    for bias, name in {"qkv_bias": "self_attn.q_proj", "output_bias": "self_attn.o_proj", "mlp_bias": "mlp.up_proj"}.items():
        made[bias] = architecture.biases and f"model.layers.0.{name}.bias" in tensors
    for ours, theirs in architecture.numbers.items():
        silent = next(one.default for one in family.numbers if one.ours == ours)
        if silent is not None or metadata.get(f"{prefix}.{theirs}") is not None:
            made[ours] = number(theirs, float)
    made |= _local(metadata, architecture, family, listed, made["rope_theta"])
    made |= dict(family.features) | dict(architecture.fixed)
    config = ModelConfig(
        family.name, width=width, layers=layers, query_heads=heads, kv_heads=kv_heads, head_width=head_width, **made
    )
    if "attention_scale" in {one.ours for one in family.numbers} - architecture.numbers.keys():
        config = replace(config, attention_scale=score_scale(architecture, config))
    return rope.from_file(metadata, architecture, waves, config)


def _epsilon(norm: str) -> str:
    return _EPSILON_OF_LAYER_NORM if norm == "layer" else _EPSILON


def _experts(metadata: Metadata, architecture: Architecture, family: Family) -> Experts | None:
    if architecture.normalized is None or family.mixture is None:
        return None
    count, active = (metadata.need(f"{architecture.name}.{name}") for name in _EXPERTS.values())
    return Experts(count, active, architecture.normalized, biases=family.mixture.silent.biases)


def _end_tokens(metadata: Metadata) -> tuple[int, ...]:
    ends = [token for role in ("eos", "eot", "eom") if (token := metadata.token(role)) is not None]
    return tuple(dict.fromkeys(ends))


def _local(metadata: Metadata, architecture: Architecture, family: Family, layers: int, theta: float) -> dict[str, Any]:
    """Which layers are local, their window, and their rotary embedding where it is not that of the others."""
    prefix = architecture.name
    window = metadata.get(f"{prefix}.{WINDOW}", architecture.silent_window)
    if not family.slides or family.window_on_request or window in (None, 0):
        return {}
    made: dict[str, Any] = {"local_window": check_count(f"{metadata.path}: metadata '{prefix}.{WINDOW}'", window)}
    which = metadata.get(f"{prefix}.{_PERIOD}")
    if isinstance(which, list):
        made["local_layers"] = tuple(layer for layer, local in enumerate(which[:layers]) if local)
    else:
        silent = layers + 1 if family.full_layers is None else family.full_layers[1]
        made["local_layers"] = local_layers(layers, metadata.need(f"{prefix}.{_PERIOD}", int, silent))
    if not made["local_layers"]:
        return {}
    if family.local_rope_base is not None:
        own = metadata.need(f"{prefix}.{_LOCAL_BASE}", float, family.local_rope_base) if architecture.local_base else theta
        made["local_rope"] = Rope(decimal(own))
    return made
