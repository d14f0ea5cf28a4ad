"""All weights of a checkpoint, read one at a time: those that it holds, and those that lie in its run's source."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from a3jax.checkpoint.arrays import SavedParameter, flat
from a3jax.checkpoint.folder import Checkpoint, damage_named, lacking, saved
from a3jax.model.parameters import shapes
from a3jax.weights.pretrained import Pretrained, frozen_source
from a3jax.weights.sharded import readers


class FrozenParameter:
    """One that lies in the source, as the run has it: in float32."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], np.ndarray]):
        self.shape = shape
        self._read = read

    def read(self, index: tuple[int, ...] = ()) -> np.ndarray:
        """All of it, or the entry at an index of its first axes. Raises `UserError` if it cannot be read."""
        own = tuple(slice(i, i + 1) for i in index)
        return self._read((*own, *[slice(None)] * (len(self.shape) - len(own))))[(0,) * len(own)]


Parameter = SavedParameter | FrozenParameter


def parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """All weights by dotted path, to be read inside `damage_named`.

    Raises `UserError` as `saved` does, and where those that are not held have moved or changed.
    """
    own: dict[str, Parameter] = dict(saved(checkpoint))
    missing = lacking(checkpoint, own)
    if not missing:
        return own
    assert checkpoint.frozen is not None
    frozen = _by_name(frozen_source(checkpoint.frozen, checkpoint.folder))
    return own | {name: frozen[name] for name in missing}


def dtype_name(checkpoint: Checkpoint) -> str:
    """In which dtype a model's embedding is kept, known without reading its source. Raises as `saved`."""
    return saved(checkpoint).get("embedding", FrozenParameter).dtype.name


def _by_name(source: Pretrained) -> dict[str, FrozenParameter]:
    expected = flat(nnx.to_pure_dict(shapes(source.config)))
    if isinstance(source.origin, Checkpoint):
        read = {name: _reader(parameter, source.origin) for name, parameter in saved(source.origin).items()}
    else:
        read = dict(readers(source.origin, FrozenParameter.dtype))
    return {name: FrozenParameter(expected[name].shape, of) for name, of in read.items()}


def _reader(parameter: SavedParameter, origin: Checkpoint) -> Callable[[tuple[slice, ...]], np.ndarray]:
    def read(index: tuple[slice, ...]) -> np.ndarray:
        with damage_named(origin):
            return parameter.part(index).astype(FrozenParameter.dtype)

    return read
