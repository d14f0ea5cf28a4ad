"""What training and generation start from: a model or run folder of ours, or a published model as it is."""

import functools
from dataclasses import dataclass
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from a3jax.checkpoint.folder import MODEL, Checkpoint, find, load_params
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.data.tokenizer import TextCodec, codec_of, load_codec
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.weights.source import Source, open_source


@dataclass(frozen=True)
class Pretrained:
    """One set of weights that is described, and not loaded yet."""

    origin: Checkpoint | Source

    @property
    def folder(self) -> Path:
        """Where it lies; a file if it is GGUF."""
        return self.origin.folder if isinstance(self.origin, Checkpoint) else self.origin.path

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.origin.config

    @property
    def record(self) -> Provenance:
        """What happened to the weights."""
        return self.origin.record

    @functools.cached_property
    def codec(self) -> TextCodec:
        """Its tokenizer."""
        if isinstance(self.origin, Checkpoint):
            return load_codec(self.origin.folder)
        return codec_of(self.origin.tokenizer, self.config, f"{self.folder}: tokenizer.json")

    def load(self, mesh: Mesh | None = None, dtype: str = "float32") -> nnx.State:
        """The weights, cast to `dtype`, laid over `mesh` or on one device. Raises `UserError` if they cannot be used."""
        if isinstance(self.origin, Checkpoint):
            return load_params(self.origin, mesh, dtype)
        from a3jax.weights.sharded import load_source

        return load_source(self.origin, mesh, dtype)


def pretrained(name: str | Path, step: int | None = None) -> Pretrained:
    """A model folder, a run folder (its newest step, or the one asked for), or anything that `a3jax import` takes.

    Raises `UserError` for anything else, and for a `step` of what has none.
    """
    path = place(name)
    if not _is_theirs(path):
        return Pretrained(find(path, step))
    if step is not None:
        raise UserError(f"{name} has no steps, and so no step {step}; leave the step out, or give a run folder")
    return Pretrained(open_source(name))


def _is_theirs(path: Path) -> bool:
    """Whether it is a published model. What is not there is one of the hub, unless the folder it should be in is there."""
    from a3jax.weights import hub

    if path.is_dir():
        return (path / "config.json").is_file() and not (path / MODEL).is_file()
    if path.exists():
        return path.suffix == ".gguf"
    return hub.parse(str(path)) is not None and not path.parent.is_dir()
