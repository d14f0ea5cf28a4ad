"""A tensor that is stored in parts: what every format makes of the names and shapes that it finds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from a3jax.errors import UserError, shown
from a3jax.weights.tensor_files import TensorFiles


class Packed(NamedTuple):
    """A plain tensor, float32, that is made of stored ones."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    """Names of those that it takes the place of; the first says which file it is in."""
    read: Callable[..., np.ndarray]
    """Raises `UserError` if one of them cannot be read."""
    stacked: bool = False
    """Whether `read` takes a slice of the first axis, and reads no more than that; else it reads all, and takes nothing."""


class Settings:
    """The `quantization_config` of a `config.json`."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def get(self, name: str, known: Sequence[Any]) -> Any:
        """A field, which must be one of the values `known`, the first where it is not there. Raises `UserError`."""
        value = known[0] if self.values.get(name) is None else self.values[name]
        if not any(value == one and type(value) is type(one) for one in known):
            listed = ", ".join(str(one) for one in known if one is not None)
            raise UserError(f"{self.where}: quantization_config: {name} {shown(value)} is not supported; only {listed}")
        return value


def suffixed(tensors: TensorFiles, suffix: str) -> list[str]:
    """What is before `suffix` in the names that end with it. Raises `UserError` if there is none."""
    found = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    if not found:
        raise UserError(f"{tensors.files()[0]}: quantization_config asks for tensors named *{suffix}, and there is none")
    return found


def check(tensors: TensorFiles, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of a stored part. Raises `UserError` where it is missing, or is of another dtype or shape."""
    if name not in tensors:
        raise UserError(f"{tensors.files()[0].parent}: tensor {name} is missing from the weights")
    found, kind = tensors.shape(name), tensors.dtype(name)
    if not kind.startswith(dtype) or (found != shape if shape is not None else len(found) != 2 or math.prod(found) == 0):
        asked = f"{dtype} of shape {shape}" if shape is not None else f"{dtype} with two axes"
        raise UserError(f"{tensors.file(name)}: tensor {name} is {kind} of shape {found}; its quantization asks for {asked}")
    return found


def whole(tensors: TensorFiles, name: str) -> np.ndarray:
    """All of a stored part."""
    return tensors.read(name, (slice(None),) * len(tensors.shape(name)))


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers of `bits` bits, lowest first, out of int32 words: an axis of 32 / bits numbers more at the end."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
