"""Writes a safetensors file one tensor at a time, where the library's own writer wants all of them in memory.

The format (github.com/huggingface/safetensors): eight bytes for the header's length, a JSON header that says for every
tensor its dtype, its shape and where its bytes stand, then the bytes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 8


class Tensor(NamedTuple):
    """One tensor to be written; its numbers are made only when it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """As written."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Sequence[Tensor], advance: Callable[[int], None]) -> str:
    """Write `path`, telling `advance` of every tensor's bytes, and return the file's SHA-256."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            file.write(block)
            digest.update(block)
        for tensor in tensors:
            value = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
            file.write(value.data)
            digest.update(value.data)
            advance(tensor.bytes)
    return digest.hexdigest()
