"""Experts in GGUF: one tensor of each kind for all experts of a layer, where Hugging Face has one for each expert."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from a3jax.weights.safetensors_writer import Tensor

_MODULE = {"mixtral": "block_sparse_moe"}
"""What a family calls the feed-forward of a layer, if not `mlp`."""
_OWN = {"mixtral": {"gate": "w1", "up": "w3", "down": "w2"}}
"""What it calls the three matrices of an expert, if not as below."""
_USUAL = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_KIND = {own: kind for names in (_USUAL, *_OWN.values()) for kind, own in names.items()}
_PART = re.compile(rf"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.\d+\.({'|'.join(_KIND)})\.weight")
_ROUTER = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.gate\.weight")
_STACKED = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")


def stacked(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors by Hugging Face name, in which those of a layer's experts, which follow each other by number, are one."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(to_gguf(tensor.name), []).append(tensor)
    return [several[0] if name == several[0].name else _one(name, several) for name, several in found.items()]


def to_gguf(name: str) -> str:
    """Where a tensor of a feed-forward of experts is in GGUF; any other name stays."""
    if (part := _PART.fullmatch(name)) is not None:
        return f"blk.{part[1]}.ffn_{_KIND[part[2]]}_exps.weight"
    router = _ROUTER.fullmatch(name)
    return name if router is None else f"blk.{router[1]}.ffn_gate_inp.weight"


def is_router(name: str) -> bool:
    """Whether a tensor, by its name in GGUF, says which experts a row goes to: llama.cpp wants it in float32."""
    return name.endswith(".ffn_gate_inp.weight")


def unstacked(tensors: dict[str, Any], family: str) -> dict[str, tuple[Any, int | None]]:
    """A reader's tensors by Hugging Face name: each with the expert that one is a part of it for, if it is of all."""
    module, own = _MODULE.get(family, "mlp"), _OWN.get(family, _USUAL)
    found: dict[str, tuple[Any, int | None]] = {}
    for name, tensor in tensors.items():
        if (stack := _STACKED.fullmatch(name)) is not None:
            prefix = f"model.layers.{stack[1]}.{module}.experts"
            found |= {f"{prefix}.{x}.{own[stack[2]]}.weight": (tensor, x) for x in range(int(tensor.shape[-1]))}
        elif is_router(name):
            found[f"model.layers.{name.split('.')[1]}.{module}.gate.weight"] = tensor, None
        else:
            found[name] = tensor, None
    return found


def _one(name: str, several: list[Tensor]) -> Tensor:
    if is_router(name):
        return several[0]._replace(name=name)
    shape = (len(several), *several[0].shape)
    return Tensor(name, shape, several[0].dtype, partial(_together, several))


def _together(several: list[Tensor]) -> np.ndarray:
    return np.stack([tensor.read() for tensor in several])
