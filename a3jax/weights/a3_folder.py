"""A two-stream model as a Hugging Face folder: its `config.json` both ways. PyTorch code travels with it (`a3jax.export`).

The configuration is the family's own, under our model type, with what the twin needs to know of the family spelt out.
"""

import dataclasses
import typing
from typing import Any

import numpy as np

from a3jax.config import Content, LayerKind, ModelConfig, Rope, Seeding
from a3jax.errors import UserError, check_count
from a3jax.model.rope import attention_factor, frequencies
from a3jax.weights import configuration, rope

MODEL_TYPE = "a3"
RECORD = "a3_record.json"
_MECHANISMS = (
    *("qkv_bias", "output_bias", "mlp_bias", "query_key_norm", "norm", "pre_norm", "post_norm", "activation"),
    *("gate_limit", "qkv_limit", "attention_sinks"),
    *("embedding_scale", "residual_scale", "attention_scale", "attention_cap", "logit_divisor", "logit_cap"),
)
"""What the twin needs to know of a family, by the names that it has here."""
_SLIDING = ("sliding_window", "layer_types", "use_sliding_window")
_SILENT = dict.fromkeys(("bos_token_id", "eos_token_id", "sliding_window"))
"""The twin has none of them where its `config.json` is silent, whatever its family has; nor does it read `rope_scaling`."""


def from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from a parsed `config.json` of ours; `where` names the file in errors."""
    seeding: Any = config.get("seeding")
    content: Any = config.get("content", ModelConfig.content)
    for name, value, known in [("seeding", seeding, Seeding), ("content", content, Content)]:
        if value not in typing.get_args(known):
            raise UserError(f"{where}: {name} is {value!r}; it must be one of {', '.join(typing.get_args(known))}")
    own = {"model_type": config.get("a3_family"), "rope_scaling": None} | _windows(config, where)
    family = configuration.from_hf(_SILENT | config | own, where)
    rank = config.get("adapter_rank", 0)
    if rank != 0 or isinstance(rank, bool):
        check_count(f"{where}: adapter_rank", rank)
    return dataclasses.replace(family, seeding=seeding, content=content, adapter_rank=rank)


def _windows(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What the family's own file would say of local attention, from the kinds of layers."""
    if "layer_kinds" not in config:
        return {}
    try:
        windows = [config["layer_kinds"][number]["window"] for number in config["kind_of_layer"]]
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{where}: layer_kinds and kind_of_layer do not say what kind each layer is of") from None
    kinds = [rope.FULL if window is None else rope.LOCAL for window in windows]
    window = next((window for window in windows if window is not None), None)
    return {"sliding_window": window, "layer_types": kinds, "use_sliding_window": window is not None}


def to_hf(config: ModelConfig, dtype: str, fillable_V: np.ndarray | None = None) -> dict[str, Any]:
    """`config.json` of the twin, which every version of transformers leaves as it is.

    `fillable_V` says which tokens may stand in a blank; all of them where it is not given.
    """
    result = configuration.to_hf(config, dtype)
    for name in ("rope_theta", "rope_scaling", *_SLIDING):  # transformers' caches would drop keys by these
        result.pop(name, None)
    kinds = list(dict.fromkeys(config.layer_kinds))
    ropes = result.get("rope_parameters", rope.rope_to_hf(Rope(config.rope_theta, config.rope_scaling)))
    return result | {
        "architectures": ["A3ForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": "configuration_a3.A3Config", "AutoModelForCausalLM": "modeling_a3.A3ForCausalLM"},
        "rope_parameters": ropes,
        "a3_family": config.family,
        **{name: getattr(config, name) for name in _MECHANISMS},
        "num_experts": config.experts.count if config.experts else 0,
        "expert_biases": config.experts is not None and config.experts.biases,
        "layer_kinds": [_kind_to_hf(config, kind) for kind in kinds],
        "kind_of_layer": [kinds.index(kind) for kind in config.layer_kinds],
        "seeding": config.seeding,
        "content": config.content,
        "adapter_rank": config.adapter_rank,
        "unfillable": [] if fillable_V is None else _ranges(~np.asarray(fillable_V)),
    }


def _kind_to_hf(config: ModelConfig, kind: LayerKind) -> dict[str, Any]:
    """What the twin knows of a kind of layers: of its rotary embedding what it comes to, whatever made it."""
    factor = 1.0 if kind.rope is None else attention_factor(kind.rope)
    return {
        "window": kind.window,
        "frequencies": frequencies(config, kind.rope).tolist(),
        "attention_factor": factor,
    }


def fillable(settings: dict[str, Any]) -> np.ndarray:
    """The tokens that may stand in a blank, V bool, from the parsed `config.json` of a folder of ours."""
    result_V = np.ones(settings["vocab_size"], bool)
    for first, last in settings["unfillable"]:
        result_V[first : last + 1] = False
    return result_V


def _ranges(mask: np.ndarray) -> list[list[int]]:
    """Where a mask is True, as [first, last] pairs."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return [[int(first), int(end) - 1] for first, end in edges.reshape(-1, 2)]
