"""Experts in GGUF: one tensor of each kind for all experts of a layer, where Hugging Face has one for each expert."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from a3jax.weights.families import family_of
from a3jax.weights.safetensors_writer import Tensor

_STORED = {"router": "ffn_gate_inp", "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
"""What `Mixture.names` has names for, as GGUF calls it."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def stacked(tensors: Iterable[Tensor], family: str) -> list[Tensor]:
    """Tensors by Hugging Face name, in which those of a layer's experts, which follow each other by number, are one."""
    names = {theirs: stored for stored, theirs in _names(family).items()}
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        name = tensor.name
        if (own := _LAYER.fullmatch(name)) and (stored := names.get(_EXPERT.sub("{x}", own[2]))):
            name = f"blk.{own[1]}.{stored}.{own[3]}"
        found.setdefault(name, []).append(tensor)
    return [several[0] if name == several[0].name else _one(name, several) for name, several in found.items()]


def is_router(name: str) -> bool:
    """Whether a tensor, by its name in GGUF, says which experts a row goes to: llama.cpp wants it in float32."""
    return ".ffn_gate_inp." in name


def unstacked(tensors: dict[str, Any], family: str) -> dict[str, tuple[Any, int | None]]:
    """A reader's tensors by Hugging Face name: each with the expert that one is a part of it for, if it is of all."""
    names = _names(family)
    found: dict[str, tuple[Any, int | None]] = {}
    for name, tensor in tensors.items():
        own = _BLOCK.fullmatch(name)
        if own is None or own[2] not in names:
            found[name] = tensor, None
            continue
        theirs = f"model.layers.{own[1]}.{names[own[2]]}.{own[3]}"
        if "{x}" in theirs:
            found |= {theirs.format(x=x): (tensor, x) for x in range(int(tensor.shape[-1]))}
        else:
            found[theirs] = tensor, None
    return found


def _names(family: str) -> dict[str, str]:
    """What GGUF and the family call the tensors of a layer of experts; none of a dense one."""
    mixture = family_of(family).mixture
    return {} if mixture is None else {_STORED[ours]: theirs for ours, theirs in mixture.names.items()}


def _one(name: str, several: list[Tensor]) -> Tensor:
    if is_router(name):
        return several[0]._replace(name=name)
    shape = (len(several), *several[0].shape)
    return Tensor(name, shape, several[0].dtype, partial(_together, several))


def _together(several: list[Tensor]) -> np.ndarray:
    return np.stack([tensor.read() for tensor in several])
