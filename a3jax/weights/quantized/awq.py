"""AWQ (Lin et al., arXiv 2306.00978), as AutoAWQ's `gemm` version writes it, of 4 bits.

A weight of O x I is stored turned around: `qweight` holds eight numbers of a row in an int32, `qzeros` the zero points of a
group of inputs likewise, in an order that its kernel wants; `scales` are those of a group and an output. The weight is
scale x (number - zero).
"""

import functools

import numpy as np

from a3jax.weights.quantized.packed import Packed, Settings, check, suffixed, unpacked, whole
from a3jax.weights.tensor_files import TensorFiles

_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""In which of a word's eight places each of eight numbers is."""


def find(settings: Settings, tensors: TensorFiles) -> dict[str, Packed]:
    """Every weight by its plain name. Raises `UserError` for a variant that is not known, and for parts that do not fit."""
    settings.get("bits", (4,))
    settings.get("version", ("gemm", "GEMM"))
    settings.get("zero_point", (True,))
    found = {}
    for name in suffixed(tensors, ".qweight"):
        parts = tuple(f"{name}.{part}" for part in ("qweight", "scales", "qzeros"))
        inputs, words = check(tensors, parts[0], "int32")
        groups, _ = check(tensors, parts[1], "float")
        check(tensors, parts[1], "float", (groups, words * 8))
        check(tensors, parts[2], "int32", (groups, words))
        found[f"{name}.weight"] = Packed((words * 8, inputs), parts, functools.partial(_read, tensors, parts))
    return found


def _read(tensors: TensorFiles, parts: tuple[str, ...]) -> np.ndarray:
    words_Ixw, scale_GxO, zeros_Gxw = (whole(tensors, part) for part in parts)
    number_IxO, zero_GxO = (unpacked(x, 4)[..., _PLACE].reshape(len(x), -1).astype(np.int32) for x in (words_Ixw, zeros_Gxw))
    inputs = len(number_IxO)
    group_I = np.arange(inputs) // -(-inputs // len(scale_GxO))
    return (scale_GxO.astype(np.float32)[group_I] * (number_IxO - zero_GxO[group_I])).T
