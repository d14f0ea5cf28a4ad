"""What tells a model from all others, wherever it lies."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from a3jax.devices.mesh import fetched
from a3jax.model.unstacked import Unstacked
from a3jax.weights.loading import Model

PART_BYTES = 2**28
"""Of an array that several hosts share, as it is brought to each of them."""


def identity(model: Model) -> dict[str, Any]:
    """What a model is: its weights as they are computed with, its shape, and its tokenizer."""
    weights = hashlib.sha256()
    for path, leaf in nnx.to_flat_state(model.params):
        # Several of a matrix in int8; one of layers that lie apart, as if they were stacked.
        for array in jax.tree.leaves(leaf[...], is_leaf=lambda part: isinstance(part, Unstacked)):
            weights.update(f"{path} {array.dtype} {array.shape}".encode())
            for part in _parts(array):
                weights.update(np.ascontiguousarray(part).view(np.uint8).data)
    return {
        "weights_sha256": weights.hexdigest(),
        "tokenizer_sha256": model.codec.sha256,
        "config": dataclasses.asdict(model.config),
        "dtype": model.compute.dtype.name,
        "record": dataclasses.asdict(model.record),
    }


def _parts(array: Array | Unstacked) -> Iterator[np.ndarray]:
    """What makes an array, one after the other: layer by layer, all of it, or of several hosts' so much as each can hold."""
    if isinstance(array, Unstacked):
        yield from map(np.asarray, array.layers)
        return
    if array.is_fully_addressable:
        yield np.asarray(array)
        return
    rows = max(1, PART_BYTES * len(array) // array.nbytes)
    for begin in range(0, len(array), rows):
        yield fetched(array[begin : begin + rows])
