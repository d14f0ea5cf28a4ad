"""GPTQ (Frantar et al., arXiv 2210.17323), as AutoGPTQ and GPTQModel write it.

A weight of O x I is stored turned around: `qweight` holds its numbers, 32 / bits of a column in an int32; every group of
inputs has a scale and a zero point for each output in `scales` and `qzeros`, and `g_idx` says of which group an input is.
The weight is scale x (number - zero). Zero points are stored less 1 (`checkpoint_format: gptq`), but not in `gptq_v2`.
"""

import functools

import numpy as np

from a3jax.weights.quantized.packed import Packed, Settings, check, suffixed, unpacked, whole
from a3jax.weights.tensor_files import TensorFiles


def find(settings: Settings, tensors: TensorFiles) -> dict[str, Packed]:
    """Every weight by its plain name. Raises `UserError` for a variant that is not known, and for parts that do not fit."""
    bits = settings.get("bits", (4, 2, 8))
    less = {"gptq": 1, "gptq_v2": 0}[settings.get("checkpoint_format", ("gptq", "gptq_v2"))]
    pack = 32 // bits
    found = {}
    for name in suffixed(tensors, ".qweight"):
        parts = tuple(f"{name}.{part}" for part in ("qweight", "scales", "qzeros", "g_idx"))
        words, outputs = check(tensors, parts[0], "int32")
        groups, _ = check(tensors, parts[1], "float")
        check(tensors, parts[1], "float", (groups, outputs))
        check(tensors, parts[2], "int32", (groups, -(-outputs // pack)))
        if parts[3] in tensors:
            check(tensors, parts[3], "int32", (words * pack,))
        else:
            parts = parts[:3]
        read = functools.partial(_read, tensors, parts, bits, less)
        found[f"{name}.weight"] = Packed((outputs, words * pack), parts, read)
    return found


def _read(tensors: TensorFiles, parts: tuple[str, ...], bits: int, less: int) -> np.ndarray:
    words_wxO, scale_GxO, zeros_Gxw, *group = (whole(tensors, part) for part in parts)
    groups, outputs = scale_GxO.shape
    number_OxI = unpacked(words_wxO.T, bits).reshape(outputs, -1)
    zero_GxO = (unpacked(zeros_Gxw, bits).reshape(groups, -1)[:, :outputs] + less) % 2**bits
    inputs = number_OxI.shape[1]
    group_I = group[0] if group else np.arange(inputs) // -(-inputs // groups)
    scale_OxI, zero_OxI = scale_GxO.astype(np.float32)[group_I].T, zero_GxO[group_I].T
    return scale_OxI * (number_OxI.astype(np.int32) - zero_OxI.astype(np.int32))
