"""The left-to-right view of a model as a GGUF file, as llama.cpp's converter would write it, one tensor at a time."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

from a3jax.config import ModelConfig, YarnScaling
from a3jax.errors import UserError
from a3jax.outside_text import say
from a3jax.weights.fused import fuse
from a3jax.weights.gguf import rope
from a3jax.weights.gguf import tokenizer as gguf_tokenizer
from a3jax.weights.gguf.architectures import architecture_of, check_writable
from a3jax.weights.gguf.configuration import to_metadata
from a3jax.weights.gguf.experts import is_router, stacked
from a3jax.weights.gguf.layout import to_gguf, to_stored
from a3jax.weights.importer import is_finite
from a3jax.weights.safetensors_writer import Tensor

_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Iterable[Tensor],
    tokenizer_files: dict[str, bytes],
    name: str,
    dtype: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `path`: tensors by Hugging Face name, matrices in `dtype` or their own, everything else in float32.

    Tells `advance` of every tensor's bytes, as it was. Of several end tokens, only the first is kept. Raises `UserError`
    for a family, a mechanism or a tokenizer that GGUF cannot hold, before anything is written, and for a number that is not
    finite in `dtype`.
    """
    check_writable(config)
    architecture = architecture_of(config.family)
    if isinstance(config.rope_scaling, YarnScaling) and not config.rope_scaling.truncate:
        say(f"{name}: llama.cpp takes whole waves for YaRN's edges, and this model does not, so that its numbers will differ")
    tensors = stacked(fuse(tensors, config) if architecture.fused else tensors, config.family)
    tokenizer = gguf_tokenizer.to_metadata(tokenizer_files, config)
    matrices = np.dtype(dtype or next(tensor.dtype for tensor in tensors if len(tensor.shape) == 2))
    waves = [Tensor(one, array.shape, array.dtype, partial(np.copy, array)) for one, array in rope.tensors(config).items()]

    def written_as(tensor: Tensor) -> np.dtype:
        kept = len(tensor.shape) > 1 and not is_router(tensor.name) and not tensor.name.endswith(".bias")
        return np.dtype(dtype or tensor.dtype) if kept else np.dtype(np.float32)

    writer = GGUFWriter(path, architecture.name)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(_TYPES[matrices.name][1])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        for key, value in (to_metadata(config, architecture) | tokenizer).items():
            _add(writer, key, value)
        for tensor in waves + tensors:
            target = written_as(tensor)
            size = int(np.prod(tensor.shape)) * target.itemsize
            writer.add_tensor_info(to_gguf(tensor.name, architecture), tensor.shape, target, size, _TYPES[target.name][0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in waves + tensors:
            value = to_stored(tensor.name, _cast(tensor, written_as(tensor)), architecture, config.head_width)
            writer.write_tensor_data(np.ascontiguousarray(value))
            del value  # before the next is read
            advance(tensor.bytes)
    finally:
        writer.close()


def _cast(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = tensor.read().astype(dtype, copy=False)
    if not is_finite(value):
        raise UserError(f"tensor {tensor.name} holds NaN, or numbers too large for {dtype}; nothing was exported")
    return value


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a value of metadata as what it is in Python."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[list] = writer.add_array
    kinds[type(value)](key, value)
