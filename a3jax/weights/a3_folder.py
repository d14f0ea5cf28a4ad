"""A two-stream model as a Hugging Face folder: its `config.json` both ways. PyTorch code travels with it (`a3jax.export`).

The configuration is the family's own, under our model type, with what the twin needs to know of the family spelt out.
"""

import dataclasses
import typing
from typing import Any

import numpy as np

from a3jax.config import Content, ModelConfig, Seeding
from a3jax.errors import UserError, check_count
from a3jax.weights import families

MODEL_TYPE = "a3"
RECORD = "a3_record.json"
_SILENT = dict.fromkeys(("bos_token_id", "eos_token_id", "sliding_window"))
"""The twin has none of them where its `config.json` is silent, whatever its family has; nor does it read `rope_scaling`."""


def from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from a parsed `config.json` of ours; `where` names the file in errors."""
    seeding: Any = config.get("seeding")
    content: Any = config.get("content", ModelConfig.content)
    for name, value, known in [("seeding", seeding, Seeding), ("content", content, Content)]:
        if value not in typing.get_args(known):
            raise UserError(f"{where}: {name} is {value!r}; it must be one of {', '.join(typing.get_args(known))}")
    family = families.from_hf(_SILENT | config | {"model_type": config.get("a3_family"), "rope_scaling": None}, where)
    rank = config.get("adapter_rank", 0)
    if rank != 0 or isinstance(rank, bool):
        check_count(f"{where}: adapter_rank", rank)
    return dataclasses.replace(family, seeding=seeding, content=content, adapter_rank=rank)


def to_hf(config: ModelConfig, dtype: str, fillable_V: np.ndarray | None = None) -> dict[str, Any]:
    """`config.json` of the twin, which every version of transformers leaves as it is.

    `fillable_V` says which tokens may stand in a blank; all of them where it is not given.
    """
    result = families.to_hf(config, dtype)
    theta, scaling = result.pop("rope_theta"), result.pop("rope_scaling")
    return result | {
        "architectures": ["A3ForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": "configuration_a3.A3Config", "AutoModelForCausalLM": "modeling_a3.A3ForCausalLM"},
        "rope_parameters": {"rope_type": "default", "rope_theta": theta} | (scaling or {}),
        "a3_family": config.family,
        "qkv_bias": config.qkv_bias,
        "query_key_norm": config.query_key_norm,
        "post_norm": config.post_norm,
        "num_experts": config.experts.count if config.experts else 0,
        "seeding": config.seeding,
        "content": config.content,
        "adapter_rank": config.adapter_rank,
        "unfillable": [] if fillable_V is None else _ranges(~np.asarray(fillable_V)),
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
