"""What training and generation start from: a model or run folder of ours, or a published model as it is."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from a3jax.checkpoint.arrays import flat
from a3jax.checkpoint.folder import MODEL, Checkpoint, Frozen, find, lacking, load_params
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.data.tokenizer import TextCodec, codec_of, load_codec
from a3jax.devices.agreement import together
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.model.parameters import declarations, named
from a3jax.weights import sha256
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
        if not isinstance(self.origin, Checkpoint):
            from a3jax.weights.sharded import load_source

            return load_source(self.origin, mesh, dtype)
        own = load_params(self.origin, mesh, dtype)
        if not (missing := lacking(self.origin, flat(nnx.to_pure_dict(own)))):
            return own
        assert self.origin.frozen is not None
        source = frozen_source(self.origin.frozen, self.folder, alone=mesh is None)
        return nnx.merge_state(own, nnx.filter_state(source.load(mesh, dtype), named(missing)))

    @property
    def sha256(self) -> str:
        """Of the files that hold the weights; reads them all. Raises `UserError` if they cannot be read."""
        if isinstance(self.origin, Checkpoint):
            folders = [self.origin.params / name for name in declarations(self.config)]
            files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
            names = {str(file.relative_to(self.origin.params)): file for file in files}
        else:
            names = {file.name: file for file in self.origin.files()}
        try:
            return sha256.of_all(names)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be read: {error.strerror}; put it right, and try again") from None


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


def frozen_source(frozen: Frozen, run: Path, alone: bool = True) -> Pretrained:
    """What the weights that a run leaves as they are lie in, once it has been looked at whether it is still the same.

    Where all processes of a run call this, not `alone`, one of them looks. Raises `UserError` if it has moved or changed.
    """
    again = "put that back, or go on training with --source and the place where it is now"
    try:
        source = pretrained(frozen.source)
    except UserError as error:
        why = str(error).partition("; ")[0]
        raise UserError(f"{run} holds what it has trained, and the rest lies in its source: {why}; {again}") from None

    def check() -> None:
        if (now := source.sha256) != frozen.sha256:
            what = f"the SHA-256 of its weights is {now[:12]}..., not {frozen.sha256[:12]}..."
            raise UserError(f"{frozen.source} is not what {run} was trained from any more: {what}; {again}")

    if alone:
        check()
    else:
        together(lambda: check() if jax.process_index() == 0 else None)
    return source
