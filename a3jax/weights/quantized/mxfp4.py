"""MXFP4 (OCP Microscaling Formats 1.0): four-bit floats, 32 in a row with a power of two in common.

As llm-compressor writes it (`compressed-tensors`, `mxfp4-pack-quantized`): `weight_packed` holds two numbers a byte, the
first in the lower bits, and `weight_scale` the exponents plus 127; and as OpenAI's folders have it (`mxfp4`), of all
experts at once: `NAME_blocks` and `NAME_scales`, the bytes of each 32 along an axis of their own.
"""

import functools

import numpy as np

from a3jax.weights.quantized.packed import Packed, Settings, check, suffixed, whole
from a3jax.weights.tensor_files import TensorFiles

_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([_POSITIVE, -_POSITIVE])
"""What each of four bits means (E2M1)."""
GROUP = 32


def find(settings: Settings, tensors: TensorFiles) -> dict[str, Packed]:
    """Every weight by its plain name, as a folder of `mxfp4` holds it. Raises `UserError` for parts that do not fit.

    Of experts it is X x I x O, as transformers has it.
    """
    found = {}
    for name in suffixed(tensors, "_blocks"):
        parts = (f"{name}_blocks", f"{name}_scales")
        *rows, groups, _ = shape = tensors.shape(parts[0])
        check(tensors, parts[0], "uint8", (*shape[:-1], GROUP // 2))
        check(tensors, parts[1], "uint8", (*rows, groups))
        plain = (*rows[:-1], groups * GROUP, *rows[-1:])
        found[name] = Packed(plain, parts, functools.partial(_read_experts, tensors, parts), stacked=True)
    return found


def find_packed(settings: Settings, tensors: TensorFiles) -> dict[str, Packed]:
    """The same of one that llm-compressor wrote."""
    found = {}
    for name in suffixed(tensors, ".weight_packed"):
        parts = (f"{name}.weight_packed", f"{name}.weight_scale")
        rows, count = check(tensors, parts[0], "uint8")
        check(tensors, parts[1], "uint8", (rows, 2 * count // GROUP))
        found[f"{name}.weight"] = Packed((rows, 2 * count), parts, functools.partial(_read, tensors, parts))
    return found


def _read(tensors: TensorFiles, parts: tuple[str, str]) -> np.ndarray:
    return _values(*(whole(tensors, part) for part in parts))


def _read_experts(tensors: TensorFiles, parts: tuple[str, str], experts: slice) -> np.ndarray:
    return _values(*(tensors.read(part, (experts,)) for part in parts)).swapaxes(-1, -2)


def _values(bytes_: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    code = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(*exponent.shape, GROUP)
    power = np.where(exponent == 255, np.nan, np.ldexp(np.float32(1), exponent.astype(np.int32) - 127))
    value = VALUES[code] * power[..., None].astype(np.float32)
    return value.reshape(*exponent.shape[:-1], -1)
