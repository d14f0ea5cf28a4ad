"""A Hugging Face folder as a source: `config.json`, its tensor files, tokenizer files."""

from pathlib import Path

import numpy as np

from a3jax.data.tokenizer import with_start
from a3jax.data.tokenizer_files import FILES
from a3jax.errors import UserError
from a3jax.record import Record
from a3jax.strict import from_json
from a3jax.weights import a3_folder, sha256
from a3jax.weights.families import from_hf
from a3jax.weights.source import Source
from a3jax.weights.tensor_files import TensorFiles, read_json


class HuggingFaceFolder(Source):
    """A folder as transformers saves it, or as we export it."""

    def __init__(self, path: Path, name: str | None = None):
        self.path = path
        raw = read_json(path / "config.json")
        adapted = raw.get("model_type") == a3_folder.MODEL_TYPE
        config = (a3_folder.from_hf if adapted else from_hf)(raw, str(path / "config.json"))
        self.tokenizer = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
        if "tokenizer.json" not in self.tokenizer:
            raise UserError(f"{path} has no tokenizer.json; save the fast tokenizer into it")
        self.config = with_start(config, self.tokenizer, str(path / "tokenizer.json"))
        self._tensors = TensorFiles(path)
        self._tensors.check_dtypes()
        self.record = Record(source=name or path.resolve().name, dtype=self._tensors.main_dtype())
        if adapted and (path / a3_folder.RECORD).is_file():
            self.record = from_json(Record, (path / a3_folder.RECORD).read_text(), str(path / a3_folder.RECORD))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        return {name: self._tensors.shape(name) for name in self._tensors}

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        return self.read_part(name, (slice(None),))

    def read_part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """See `Source`."""
        return self._tensors.read(name, index).astype(self.dtype(name), copy=False)

    def dtype(self, name: str) -> np.dtype:
        """See `Source`."""
        dtype = self._tensors.dtype(name)
        return np.dtype("float32" if dtype == "float64" else dtype)

    def where(self, name: str) -> str:
        """See `Source`."""
        return f"{self._tensors.file(name) if name in self._tensors else self.path}: tensor {name}"

    def files(self) -> list[Path]:
        """See `Source`."""
        return self._tensors.files()

    def checksums(self) -> dict[Path, str]:
        """Of a folder that we exported, and of one that the hub's own tools keep in their cache."""
        listed = sha256.read(self.path)
        cached = {file: file.resolve().name for file in self.files() if file.is_symlink()}
        known = {file: name for file, name in cached.items() if sha256.is_digest(name)}
        return known | {file: listed[file.name] for file in self.files() if file.name in listed}
