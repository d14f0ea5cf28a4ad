"""Which format a folder is in, and its tensors as if they were plain.

A tensor is dequantized whole, in float32, when it or a part of it is read, one at a time; of experts in one tensor those that
are asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from a3jax.errors import UserError, shown
from a3jax.weights.quantized import awq, fp8, gptq, mxfp4
from a3jax.weights.quantized.packed import Packed, Settings
from a3jax.weights.tensor_files import TensorFiles

METHODS: dict[str, tuple[str, Callable[[Settings, TensorFiles], dict[str, Packed]]]] = {
    "gptq": ("GPTQ", gptq.find),
    "awq": ("AWQ", awq.find),
    "fp8": ("FP8", fp8.find),
    "fbgemm_fp8": ("FP8", fp8.find),
    "mxfp4": ("MXFP4", mxfp4.find),
    "compressed-tensors float-quantized": ("FP8", fp8.find),
    "compressed-tensors mxfp4-pack-quantized": ("MXFP4", mxfp4.find_packed),
}
"""`quant_method`, and the `format` of `compressed-tensors`: what it is called, and what finds the weights."""


def opened(folder: Path, config: Mapping[str, Any]) -> TensorFiles:
    """The tensors of a folder whose parsed `config.json` is given. Raises `UserError` if they cannot be imported."""
    tensors, settings = TensorFiles(folder), config.get("quantization_config")
    if settings is not None:
        where = f"{folder / 'config.json'}"
        tensors = Dequantized(tensors, METHODS[_method(settings, where)][1](Settings(settings, where), tensors))
    tensors.check_dtypes()
    return tensors


def said(config: Mapping[str, Any]) -> str:
    """What the weights were stored as, in a few words; empty where they are plain. Of what `opened` takes."""
    settings = config.get("quantization_config")
    if settings is None:
        return ""
    name, bits = METHODS[_method(settings, "")][0], settings.get("bits")
    return f"{name}, {bits} bits" if bits else name


def _method(settings: Any, where: str) -> str:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method == "compressed-tensors":
        method = f"{method} {settings.get('format')}"
    if not isinstance(method, str) or method not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"{where}: quantization_config: quant_method {shown(method)} is not supported; known are {known}")
    return method


class Dequantized(TensorFiles):
    """Tensors of which some are made of others, and take their place."""

    def __init__(self, stored: TensorFiles, packed: dict[str, Packed]):
        self._stored, self._packed = stored, packed
        parts = {name for one in packed.values() for name in one.parts}
        self._names = dict.fromkeys([*(name for name in stored if name not in parts), *packed])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def rename(self, name: str, new: str) -> None:
        """See `TensorFiles`."""
        if name in self._packed:
            self._packed[new] = self._packed.pop(name)
        else:
            self._stored.rename(name, new)
        self._names[new] = self._names.pop(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorFiles`."""
        return self._packed[name].shape if name in self._packed else self._stored.shape(name)

    def dtype(self, name: str) -> str:
        """See `TensorFiles`."""
        return "float32" if name in self._packed else self._stored.dtype(name)

    def file(self, name: str) -> Path:
        """See `TensorFiles`."""
        return self._stored.file(self._packed[name].parts[0] if name in self._packed else name)

    def files(self) -> list[Path]:
        """See `TensorFiles`."""
        return self._stored.files()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """See `TensorFiles`."""
        if name not in self._packed:
            return self._stored.read(name, index)
        packed = self._packed[name]
        return packed.read(index[0])[(slice(None), *index[1:])] if packed.stacked else packed.read()[index]
