"""A GGUF file as a source: quantized tensors become float32, names and layouts become Hugging Face's.

Its tokenizer is metadata, from which an equal `tokenizer.json` is built.
"""

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, dequantize

from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import with_start
from a3jax.errors import UserError
from a3jax.weights.fused import parts
from a3jax.weights.gguf import rope
from a3jax.weights.gguf.architectures import ARCHITECTURES, EXPERT_COUNT, WINDOW, architecture_named
from a3jax.weights.gguf.configuration import from_metadata
from a3jax.weights.gguf.experts import unstacked
from a3jax.weights.gguf.layout import from_stored, to_hugging_face
from a3jax.weights.gguf.metadata import Metadata, open_gguf
from a3jax.weights.gguf.tokenizer import to_files
from a3jax.weights.source import Source

PLAIN = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
"""Types that are kept as they are."""


class _Stored(NamedTuple):
    """Where one of our tensors stands in the file."""

    tensor: Any
    """The reader's."""
    part: slice | int = slice(None)
    """Rows of it, or its expert."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        first, *rest = (int(n) for n in self.tensor.shape[::-1])
        return tuple(rest) if isinstance(self.part, int) else (len(range(first)[self.part]), *rest)


class GgufFile(Source):
    """A GGUF file of one of the architectures in the table."""

    def __init__(self, path: Path):
        self.path = path
        reader = open_gguf(path)
        metadata = Metadata(path, reader)
        name = metadata.get("general.architecture")
        told = [one for one in (EXPERT_COUNT, WINDOW) if metadata.get(f"{name}.{one}")]
        if (architecture := architecture_named(name, told)) is None:
            what, names = " with experts" * (EXPERT_COUNT in told), dict.fromkeys(row.name for row in ARCHITECTURES)
            raise UserError(
                f"{path}: GGUF architecture '{name}'{what} is not supported, only {', '.join(names)}; import its folder"
            )
        self._architecture = architecture
        by_name = {to_hugging_face(tensor.name, architecture): tensor for tensor in reader.tensors}
        if len(by_name) < len(reader.tensors):
            raise UserError(f"{path} holds a tensor twice, by llama.cpp's name and by that of a Hugging Face folder")
        waves = {one: np.asarray(by_name.pop(one).data, np.float32).ravel() for one in rope.TENSORS if one in by_name}
        config = from_metadata(metadata, architecture, by_name, waves)
        found = unstacked(by_name, config.family)
        self._tensors = {one: _Stored(tensor, slice(None) if x is None else x) for one, (tensor, x) in found.items()}
        for one, part in parts({one: stored.shape for one, stored in self._tensors.items()}, config).items():
            self._tensors.pop(part.whole, None)
            self._tensors[one] = _Stored(by_name[part.whole], slice(part.outputs.start, part.outputs.stop))
        self.tokenizer = to_files(metadata, config.context)
        self.config = with_start(config, self.tokenizer, f"{path}: tokenizer.json")
        quantized = any(stored.tensor.tensor_type not in PLAIN for stored in self._tensors.values())
        embedding = self._tensors.get("model.embed_tokens.weight")
        dtype = "float32" if embedding is None else self.dtype("model.embed_tokens.weight").name
        self.record = Provenance(source=path.name, dtype=dtype, dequantized=quantized)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        return {name: stored.shape for name, stored in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        """See `Source`."""
        return PLAIN.get(self._tensors[name].tensor.tensor_type, np.dtype(np.float32))

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        stored = self._tensors[name]
        kind, data = stored.tensor.tensor_type, stored.tensor.data[stored.part]
        try:
            array = data.view(self.dtype(name)) if kind in PLAIN else dequantize(data, kind)
        except NotImplementedError:
            raise UserError(f"{self.where(name)} has type {kind.name}, which gguf cannot read") from None
        array = np.asarray(array).reshape(stored.shape)
        return from_stored(name, array, self._architecture, self.config.head_width)
