"""What every importer reads from: a model's configuration, its tensors by Hugging Face name, and its tokenizer files."""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from a3jax.checkpoint.folder import refuse_adapters
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.files.outside_json import parse_object
from a3jax.files.places import local_copy, local_folder, place


class Source(ABC):
    """A pretrained model on disk, read tensor by tensor."""

    path: Path
    config: ModelConfig
    record: Provenance
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

    Raises `UserError` if it is none of them, or cannot be imported, as far as that is seen without its tensors' numbers.
    """
    from a3jax.weights import hub
    from a3jax.weights.gguf import GgufFile
    from a3jax.weights.huggingface import HuggingFaceFolder
    from a3jax.weights.importer import check_source

    path = place(name)
    if path.is_dir():
        refuse_adapters(path)
        source: Source = HuggingFaceFolder(local_folder(path))
    elif path.suffix == ".gguf" and path.is_file():
        source = GgufFile(local_copy(path))
    elif path.exists():
        raise UserError(f"{path} is neither a Hugging Face folder nor a .gguf file")
    elif (model := hub.parse(str(name))) is not None:
        source = HuggingFaceFolder(hub.download(model), str(model))
    else:
        raise UserError(f"{path} does not exist; give a Hugging Face folder, a .gguf file or a hub name such as owner/model")
    check_source(source)  # before anything is made whose size the configuration says
    return source


def without_code(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    """A tokenizer's files by name, as `where` holds them, without what would have others' code run when they are loaded.

    `auto_map` of `tokenizer_config.json` names such code, and with it goes the class that it defines: `tokenizer.json` is
    read by transformers' own. Raises `UserError` if `tokenizer_config.json` is no JSON object.
    """
    name = "tokenizer_config.json"
    if name not in files:
        return files
    settings = parse_object(files[name], f"{where}: {name}")
    if "auto_map" not in settings:
        return files
    del settings["auto_map"]
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return files | {name: json.dumps(settings, indent=2).encode()}
