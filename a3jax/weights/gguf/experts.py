"""Experts in GGUF: one tensor of each kind for all experts of a layer, where Hugging Face has one for each expert."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from a3jax.weights.safetensors_writer import Tensor

_MODULE = {"mixtral": "block_sparse_moe"}
"""What a family calls the feed-forward of a layer, if not `mlp`."""
_ROUTER = {"gpt_oss": "router"}
"""What it calls the router, if not `gate`."""
_OWN = {"mixtral": {"gate": "w1", "up": "w3", "down": "w2"}}
"""What it calls the three matrices of an expert, if not as below."""
_USUAL = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_KIND = {own: kind for names in (_USUAL, *_OWN.values()) for kind, own in names.items()}
_EXPERT = re.compile(rf"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.\d+\.({'|'.join(_KIND)})\.(weight|bias)")
_ROUTES = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.(?:gate|router)\.(weight|bias)")
_STORED = re.compile(r"blk\.(\d+)\.ffn_(?:(gate|up|down)_exps|gate_inp)\.(weight|bias)")


def stacked(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors by Hugging Face name, in which those of a layer's experts, which follow each other by number, are one."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(to_gguf(tensor.name), []).append(tensor)
    return [several[0] if name == several[0].name else _one(name, several) for name, several in found.items()]


def to_gguf(name: str) -> str:
    """Where a tensor of a feed-forward of experts is in GGUF; any other name stays."""
    if (expert := _EXPERT.fullmatch(name)) is not None:
        return f"blk.{expert[1]}.ffn_{_KIND[expert[2]]}_exps.{expert[3]}"
    router = _ROUTES.fullmatch(name)
    return name if router is None else f"blk.{router[1]}.ffn_gate_inp.{router[2]}"


def is_router(name: str) -> bool:
    """Whether a tensor, by its name in GGUF, says which experts a row goes to: llama.cpp wants it in float32."""
    return ".ffn_gate_inp." in name


def unstacked(tensors: dict[str, Any], family: str) -> dict[str, tuple[Any, int | None]]:
    """A reader's tensors by Hugging Face name: each with the expert that one is a part of it for, if it is of all."""
    module, own = _MODULE.get(family, "mlp"), _OWN.get(family, _USUAL)
    found: dict[str, tuple[Any, int | None]] = {}
    for name, tensor in tensors.items():
        if (stored := _STORED.fullmatch(name)) is None:
            found[name] = tensor, None
            continue
        layer, kind, end = stored.groups()
        prefix = f"model.layers.{layer}.{module}"
        if kind is None:
            found[f"{prefix}.{_ROUTER.get(family, 'gate')}.{end}"] = tensor, None
        else:
            found |= {f"{prefix}.experts.{x}.{own[kind]}.{end}": (tensor, x) for x in range(int(tensor.shape[-1]))}
    return found


def _one(name: str, several: list[Tensor]) -> Tensor:
    if is_router(name):
        return several[0]._replace(name=name)
    shape = (len(several), *several[0].shape)
    return Tensor(name, shape, several[0].dtype, partial(_together, several))


def _together(several: list[Tensor]) -> np.ndarray:
    return np.stack([tensor.read() for tensor in several])
