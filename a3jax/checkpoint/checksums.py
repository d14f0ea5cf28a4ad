"""Checksums of arrays, computed where they lie on their devices: when a step is saved, and by all who read it.

Storage checks its own metadata at best, and what lies between it and the devices nothing at all. A sum over the bits of
all elements, modulo 2**32, is the same for any mesh and any number of processes, and costs one pass over memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def array_sums(tree: Any) -> dict[str, int]:
    """One number for every array of a tree, by its path there. Called in every process of a mesh."""
    sums = jax.device_get(_sums(tree))
    return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _sums(tree: Any) -> Any:
    return jax.tree.map(_sum, tree)


def _sum(x: Array) -> Array:
    """Every element counts by an odd number of its own place, so that neither a changed bit nor a swap goes unseen."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    weight = jnp.ones((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        weight = weight * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (2 * weight + 1)).sum(dtype=jnp.uint32)
