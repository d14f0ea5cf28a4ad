"""What every importer reads from: a model's configuration, its tensors by Hugging Face name, and its tokenizer files."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.record import Record


class Source(ABC):
    """A pretrained model on disk, read tensor by tensor."""

    path: Path
    config: ModelConfig
    record: Record
    tokenizer: dict[str, bytes]
    """File name -> contents; `tokenizer.json` is always there."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape, without reading the tensors."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One tensor, of `dtype(name)`. Raises `UserError` naming the file if it cannot be read."""

    def read_part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of one tensor, one slice an axis. Reads no more than that where the format allows. Raises as `read`."""
        return self.read(name)[index]

    def dtype(self, name: str) -> np.dtype:
        """What `read` gives."""
        return np.dtype(np.float32)

    def where(self, name: str) -> str:
        """A tensor's file and name, for messages."""
        return f"{self.path}: tensor {name}"

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]

    def checksums(self) -> dict[Path, str]:
        """The SHA-256 that some of the files should have, where that is known."""
        return {}


def open_source(name: str | Path) -> Source:
    """A Hugging Face folder, a `.gguf` file, or a model of the Hugging Face hub, which is downloaded.

    Raises `UserError` if it is none of them, or cannot be imported.
    """
    from a3jax.weights import hub
    from a3jax.weights.gguf import GgufFile
    from a3jax.weights.huggingface import HuggingFaceFolder

    path = Path(name)
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.suffix == ".gguf" and path.is_file():
        return GgufFile(path)
    if path.exists():
        raise UserError(f"{path} is neither a Hugging Face folder nor a .gguf file")
    if (model := hub.parse(str(name))) is not None:
        return HuggingFaceFolder(hub.download(model), str(model))
    raise UserError(f"{path} does not exist; give a Hugging Face folder, a .gguf file or a hub name such as owner/model")
