"""Pretrained weights straight onto a mesh: every process reads its own part of every tensor, and no copy lies on disk.

A parameter is filled shard by shard, and a shard layer by layer, in the place where it stays: JAX on the CPU takes such a
buffer as it is, an accelerator's runtime copies from it. On the host there is never more beside the shards than one part
of one tensor, as read. Checksums, which need all of a file, are left to `a3jax import`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from a3jax.checkpoint.arrays import Index, flat, laid_out, nested, ranges
from a3jax.checkpoint.folder import layout
from a3jax.devices.replicas import read_once
from a3jax.model.parameters import shapes
from a3jax.progress import Progress
from a3jax.weights.importer import check_finite, mean_embedding, table_of
from a3jax.weights.source import Source
from a3jax.weights.table import QUERY_SEED, Entry

_ALIGNMENT = 64
"""Bytes; JAX on the CPU copies a buffer that does not begin at a multiple of it."""


def load_source(source: Source, mesh: Mesh | None = None, dtype: str = "float32") -> nnx.State:
    """The parameters of `source`, cast to `dtype`, laid over `mesh` or on one device: what an import and a load give.

    That holds bit for bit; of the query seed where a device has more than one column of it, since numpy sums a single
    column in another order. A source without a query seed has its embedding read a second time, for the mean.
    Raises `UserError` for a tensor that is not finite, within what this process reads.
    """
    tree, target = shapes(source.config), np.dtype(dtype)
    abstract = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, target, sharding=s), tree, layout(tree, mesh))

    def read(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        arrays: dict[str, jax.Array] = {}
        with Progress("load", len(asked), "parameters", lines=jax.process_index() == 0) as progress:
            for name, part in readers(source, target):
                # Wait, or parameters whose copy to the device is under way would add up.
                arrays[name] = laid_out(asked[name].shape, asked[name].sharding, part).block_until_ready()
                progress.advance()
        return arrays

    nnx.replace_by_pure_dict(tree, nested(read_once(flat(nnx.to_pure_dict(abstract)), read)))
    return tree


def readers(source: Source, dtype: np.dtype) -> Iterator[tuple[str, Callable[[Index], np.ndarray]]]:
    """Every parameter by dotted path, and what reads a part of it in `dtype`."""
    tree, table = nnx.to_pure_dict(shapes(source.config)), table_of(source)
    for entry in table:
        yield entry.ours, functools.partial(_read, source, entry, entry.get(tree).shape, dtype)
    if QUERY_SEED not in table:
        embedding = next(entry.theirs for entry in table if entry.ours == "embedding")
        yield QUERY_SEED.ours, lambda index: mean_embedding(source.read_part(embedding, (slice(None), *index))).astype(dtype)


def _read(source: Source, entry: Entry, shape: tuple[int, ...], dtype: np.dtype, index: Index) -> np.ndarray:
    """A part of a parameter whose whole shape is `shape`."""
    result = _empty(tuple(map(len, ranges(index, shape))), dtype)
    names, stacked = np.array(list(entry.names(shape).values())).reshape(shape[: entry.stacked]), entry.stacked
    wanted = entry.their_index(index[stacked:], shape[stacked:])
    parts = result.reshape(-1, *result.shape[stacked:])
    for name, part in zip(names[index[:stacked]].ravel(), parts, strict=True):
        tensor = source.read_part(name, wanted)
        with np.errstate(over="ignore"):
            part[...] = entry.to_ours(tensor, part.shape)
        check_finite(tensor, part, source.where(name))
    return result


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)
