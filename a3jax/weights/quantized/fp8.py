"""Weights of eight-bit floats, each with a scale for all of it, for each of its rows, or for each block of it.

DeepSeek's and Qwen's folders (`fp8`, with `weight_block_size`), FBGEMM's (a scale a row), and those of llm-compressor
(`compressed-tensors`, `float-quantized`). The scale is multiplied with, whether its tensor is called `weight_scale` or
`weight_scale_inv`. Scales of activations and of the cache have no place here, and are left out.
"""

import functools
import math

import numpy as np

from a3jax.errors import UserError
from a3jax.weights.quantized.packed import Packed, Settings, whole
from a3jax.weights.tensor_files import TensorFiles

_OF_ACTIVATIONS = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale")


def find(settings: Settings, tensors: TensorFiles) -> dict[str, Packed]:
    """Every weight by its own name. Raises `UserError` for scales that do not fit, and where nothing is quantized so."""
    block = settings.values.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    ):
        raise UserError(f"{settings.where}: quantization_config: weight_block_size must be two numbers from 1 on")
    found = {}
    for name in tensors:
        if tensors.dtype(name).startswith("float8"):
            found[name] = _packed(tensors, name, tuple(block or ()))
    if not found:
        raise UserError(f"{settings.where}: quantization_config asks for weights of eight-bit floats, and there are none")
    return found


def _packed(tensors: TensorFiles, name: str, block: tuple[int, ...]) -> Packed:
    shape, module = tensors.shape(name), name.rpartition(".")[0]
    scale = next((f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors), None)
    if scale is None:
        raise UserError(f"{tensors.file(name)}: tensor {name} is {tensors.dtype(name)}, and has no {name}_scale")
    of, each = tensors.shape(scale), ()
    blocks = tuple(-(-n // size) for n, size in zip(shape, block)) if len(shape) == 2 else ()
    if block and of == blocks:
        each = block
    elif math.prod(of) == 1:
        each = shape
    elif of in (shape[:1], (shape[0], 1)):
        each = (1, *shape[1:])
    else:
        raise UserError(f"{tensors.file(scale)}: tensor {scale} has shape {of}, which does not fit {name} of shape {shape}")
    others = tuple(other for kind in _OF_ACTIVATIONS if (other := f"{module}.{kind}") in tensors)
    return Packed(shape, (name, scale, *others), functools.partial(_read, tensors, name, scale, each))


def _read(tensors: TensorFiles, name: str, scale: str, each: tuple[int, ...]) -> np.ndarray:
    """Each scale is that of a block of the weight as large as `each`; the last ones may be cut."""
    weight, factor = (whole(tensors, part).astype(np.float32) for part in (name, scale))
    factor = factor.reshape([-(-n // size) for n, size in zip(weight.shape, each)])
    for axis, (n, size) in enumerate(zip(weight.shape, each)):
        if size > 1 and factor.shape[axis] > 1:
            factor = factor.repeat(size, axis).take(range(n), axis)
    weight *= factor
    return weight
