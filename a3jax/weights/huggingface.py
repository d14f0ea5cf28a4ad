"""A Hugging Face folder as a source: `config.json` and `generation_config.json`, its tensor files, tokenizer files.

Where a folder says two things, that is taken which transformers 5 takes, and a line on standard error says so.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.data.tokenizer import with_start
from a3jax.data.tokenizer_files import FILES
from a3jax.errors import UserError
from a3jax.files.strict import read
from a3jax.outside_text import say
from a3jax.weights import a3_folder, configuration, generation, quantized, sha256
from a3jax.weights.fused import parts
from a3jax.weights.source import Source, without_code
from a3jax.weights.tensor_files import TensorFiles, read_json

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = 4096
"""Of two matrices, compared at a time."""


class Description(NamedTuple):
    """What a folder's small files say of its model."""

    adapted: bool
    """Whether it is an export of both streams."""
    config: ModelConfig
    generation: dict[str, Any]
    """As `Provenance` has it."""
    model: dict[str, Any]
    """`config.json` itself."""


def read_description(path: Path) -> Description:
    """What the folder at `path` says of its model, without its tensors. Raises `UserError` for what cannot be imported."""
    where, file = str(path / "config.json"), path / generation.FILE
    model = read_json(path / "config.json")
    settings = read_json(file) if file.is_file() else {}
    adapted = model.get("model_type") == a3_folder.MODEL_TYPE
    config = (a3_folder.from_hf if adapted else configuration.from_hf)(model, where)
    if not adapted and model.get("rope_scaling") and model.get("rope_parameters") and config.local_rope is None:
        say(f"{where}: rope_scaling stands in place of all of rope_parameters, as in transformers")
    config = generation.united(config, model, settings, str(file))
    return Description(adapted, config, generation.kept(model, settings, config.vocab), model)


def with_stored_head(config: ModelConfig, tensors: TensorFiles, where: str) -> ModelConfig:
    """The model as its tensors have it: a head that should be tied, but is stored and another, is its own.

    One that is stored in place of the embedding is that too. Reads both matrices up to the first difference, some rows at a
    time, and neither where just one is stored.
    """
    if not config.tied_head or _HEAD not in tensors:
        return config
    if _EMBEDDING not in tensors:
        tensors.rename(_HEAD, _EMBEDDING)
        return config
    if _equal(tensors, _EMBEDDING, _HEAD):
        return config
    say(f"{where}: tie_word_embeddings is true, but {_HEAD} is stored and differs from the embedding: it stays its own head")
    return dataclasses.replace(config, tied_head=False)


def _equal(tensors: TensorFiles, a: str, b: str) -> bool:
    shape = tensors.shape(a)
    if len(shape) != 2 or shape != tensors.shape(b):
        return False
    parts = [(slice(row, min(row + _ROWS, shape[0])),) for row in range(0, shape[0], _ROWS)]
    return all(np.array_equal(tensors.read(a, part), tensors.read(b, part)) for part in parts)


class HuggingFaceFolder(Source):
    """A folder as transformers saves it, or as we export it."""

    def __init__(self, path: Path, name: str | None = None):
        self.path = path
        adapted, config, settings, model = read_description(path)
        found = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
        self.tokenizer = without_code(found, str(path))
        if "tokenizer.json" not in self.tokenizer:
            raise UserError(f"{path} has no tokenizer.json; save the fast tokenizer into it")
        config = with_start(config, self.tokenizer, str(path / "tokenizer.json"))
        self._tensors = quantized.opened(path, model)
        self.config = with_stored_head(config, self._tensors, str(path / "config.json"))
        self._parts = parts({name: self._tensors.shape(name) for name in self._tensors}, config)
        stored = quantized.said(model)
        dtype = "float32" if stored else self._tensors.main_dtype()
        record = Provenance(name or path.resolve().name, dtype, dequantized=bool(stored), stored=stored)
        if adapted and (path / a3_folder.RECORD).is_file():
            record = read(Provenance, path / a3_folder.RECORD)
        self.record = dataclasses.replace(record, generation=settings)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        wholes = {part.whole for part in self._parts.values()}
        found = {name: self._tensors.shape(name) for name in self._tensors if name not in wholes}
        return found | {name: part.shape for name, part in self._parts.items()}

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        return self.read_part(name, (slice(None),))

    def read_part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """See `Source`."""
        part = self._parts.get(name)
        stored = self._tensors.read(name, index) if part is None else part.read(self._tensors.read, index)
        return stored.astype(self.dtype(name), copy=False)

    def dtype(self, name: str) -> np.dtype:
        """See `Source`."""
        dtype = self._tensors.dtype(self._stored(name))
        return np.dtype("float32" if dtype == "float64" else dtype)

    def where(self, name: str) -> str:
        """See `Source`."""
        stored = self._stored(name)
        return f"{self._tensors.file(stored) if stored in self._tensors else self.path}: tensor {stored}"

    def _stored(self, name: str) -> str:
        """The name of the tensor in which one is stored: its own, or that of one that holds several."""
        return self._parts[name].whole if name in self._parts else name

    def files(self) -> list[Path]:
        """See `Source`."""
        return self._tensors.files()

    def checksums(self) -> dict[Path, str]:
        """Of a folder that we exported, and of one that the hub's own tools keep in their cache."""
        listed = sha256.read(self.path)
        cached = {file: file.resolve().name for file in self.files() if file.is_symlink()}
        known = {file: name for file, name in cached.items() if sha256.is_digest(name)}
        return known | {file: listed[file.name] for file in self.files() if file.name in listed}
