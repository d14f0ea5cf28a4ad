"""Adapters without the weights that they change: a small folder, which makes its model again where it meets its source.

    adapters.json           the model, what happened to it, and how its source is known
    adapters.safetensors    the adapters and the seeds of queries, under the names that a two-stream export gives them

A source is known by its norms: they are a few numbers, and every format keeps them as they are, so that adapters trained on
quantized weights fit the original ones too, which they then change a little less exactly.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a3jax.checkpoint.folder import ADAPTERS as DESCRIPTION
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.files.places import local_folder
from a3jax.files.strict import read
from a3jax.weights.importer import check_source
from a3jax.weights.source import Source
from a3jax.weights.table import QUERY_SEED, entries
from a3jax.weights.tensor_files import TensorFiles

TENSORS = "adapters.safetensors"
_OWN = ("seeding", "content", "adapter_rank", "adapter_stream", "start_token", "starts", "end_tokens")
"""Fields of a model that adapters bring along; in all others they must agree with their source."""


@dataclass(frozen=True)
class Adapters:
    """What `adapters.json` says."""

    model: ModelConfig
    record: Provenance
    norms: str
    """SHA-256 of the source's norms in float32 (`fingerprint`)."""


def names(config: ModelConfig) -> frozenset[str]:
    """The tensors of a two-stream export that are no part of the source."""
    own = [entry for entry in entries(config) if entry.kind in ("adapter", "seed")]
    return frozenset(name for entry in (*own, QUERY_SEED) for name in entry.names((config.layers,)).values())


def norm_names(config: ModelConfig) -> list[str]:
    """The tensors that a source is known by, in the order of the table."""
    return [name for entry in entries(config) if entry.kind == "norm" for name in entry.names((config.layers,)).values()]


def fingerprint(norms: Iterable[np.ndarray]) -> str:
    """SHA-256 of the source's norms, one after the other, as float32."""
    digest = hashlib.sha256()
    for norm in norms:
        digest.update(np.ascontiguousarray(norm, np.float32).tobytes())
    return digest.hexdigest()


class AdaptedSource(Source):
    """A source with adapters put on it, which is read as if it had them."""

    def __init__(self, source: Source, folder: Path):
        """Raises `UserError` for a folder without adapters, and for those of another model."""
        folder = local_folder(folder)
        if not (folder / DESCRIPTION).is_file():
            raise UserError(f"{folder} has no {DESCRIPTION}; give a folder written by a3jax export --as adapters")
        self._source, self._adapters = source, read(Adapters, folder / DESCRIPTION)
        self._tensors = TensorFiles(folder)
        self.path, self.tokenizer = source.path, source.tokenizer
        self.config, self.record = self._adapters.model, self._adapters.record
        expected = dataclasses.replace(source.config, **{name: getattr(self.config, name) for name in _OWN})
        for field in dataclasses.fields(ModelConfig):
            own, theirs = getattr(self.config, field.name), getattr(expected, field.name)
            if own != theirs:
                raise UserError(
                    f"{folder}: {field.name} is {own}, of {source.path} {theirs}; these are another model's adapters"
                )
        if fingerprint(map(source.read, norm_names(source.config))) != self._adapters.norms:
            raise UserError(f"{folder}: the norms of {source.path} are not those that these adapters were trained with")
        check_source(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:  # noqa: D102, as in `Source`
        return self._source.shapes() | {name: self._tensors.shape(name) for name in self._tensors}

    def read(self, name: str) -> np.ndarray:  # noqa: D102
        if name not in self._tensors:
            return self._source.read(name)
        return self._tensors.read(name, (slice(None),) * len(self._tensors.shape(name)))

    def dtype(self, name: str) -> np.dtype:  # noqa: D102
        return np.dtype(self._tensors.dtype(name)) if name in self._tensors else self._source.dtype(name)

    def where(self, name: str) -> str:  # noqa: D102
        return f"{self._tensors.file(name)}: tensor {name}" if name in self._tensors else self._source.where(name)

    def files(self) -> list[Path]:  # noqa: D102
        return [*self._source.files(), *self._tensors.files()]

    def checksums(self) -> dict[Path, str]:  # noqa: D102
        return self._source.checksums()
