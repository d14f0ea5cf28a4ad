"""Adapters of both streams as PEFT keeps a LoRA: two tensors for each matrix, and a description of what they change.

adapter_config.json           the rank, the modules, and the model that they are adapters of
adapter_model.safetensors     lora_A, rank x inputs, and lora_B, outputs x rank
"""

from collections.abc import Iterable
from typing import Any

DESCRIPTION, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_ENDS = {"_in.weight": ".lora_A.weight", "_out.weight": ".lora_B.weight"}


def name(tensor: str) -> str:
    """PEFT's name of an adapter's tensor, from that in a two-stream export."""
    (end,) = (end for end in _ENDS if tensor.endswith(end))
    return f"base_model.model.{tensor.removesuffix(end)}{_ENDS[end]}"


def description(source: str, rank: int, tensors: Iterable[str]) -> dict[str, Any]:
    """What `adapter_config.json` says of adapters of `source` with these tensors, by PEFT's names."""
    modules = {tensor.split(".lora_")[0].rpartition(".")[2] for tensor in tensors}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": rank,  # what is added is scaled by alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
