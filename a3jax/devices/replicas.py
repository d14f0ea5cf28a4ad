"""What several parts of a mesh hold alike is read by the processes of one of them, which send it to the others.

Parameters and moments are the same along `slices` and `data`. If each process read its own, storage would give every number
once for each replica; the network between devices is faster, and there is more of it. It is sent by adding up the bits, of
which all but one replica have zeros: as floats, -0.0 would come as 0.0.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.devices.agreement import together

T = TypeVar("T")

REPLICAS = ("slices", "data")
"""Along these no parameter is split."""


def read_once(abstract: T, read: Callable[[T], T]) -> T:
    """Arrays as `abstract` describes them (`jax.ShapeDtypeStruct`, of one mesh, or none), read by one replica's processes.

    `read` gives those that it is asked for, laid out as it is told. Called in every process of the mesh; raises what `read`
    does, or as `together` where it failed in another process.
    """
    if _first_replica(abstract) is None:
        return read(abstract)
    part = part_to_read(abstract)
    return sent_to_all(together(lambda: None if part is None else read(part)), abstract)


def part_to_read(abstract: T) -> T | None:
    """What this process is to read of such arrays: all of them, over one replica alone, or None."""
    if (first := _first_replica(abstract)) is None:
        return abstract
    if jax.process_index() not in _processes(first):
        return None

    def alone(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(first, leaf.sharding.spec))

    return jax.tree.map(alone, abstract)


def sent_to_all(read: T | None, abstract: T) -> T:
    """All of the arrays that `abstract` describes, from what each process has read as `part_to_read` says."""
    if _first_replica(abstract) is None:
        assert read is not None
        return read
    leaves, structure = jax.tree.flatten(abstract)
    found = [None] * len(leaves) if read is None else jax.tree.leaves(read)
    for i, leaf in enumerate(leaves):  # one after the other: beside what stays there is one of them twice, and no more
        found[i] = _sent(found[i], leaf).block_until_ready()
    return jax.tree.unflatten(structure, found)


def _first_replica(abstract: Any) -> Mesh | None:
    """The mesh of one replica; None where every process has a part in it, and so has nothing to receive."""
    leaves = jax.tree.leaves(abstract)
    if not leaves or not isinstance(leaves[0].sharding, NamedSharding):
        return None
    mesh = leaves[0].sharding.mesh
    assert isinstance(mesh, Mesh)
    first = Mesh(mesh.devices[tuple(slice(1 if axis in REPLICAS else None) for axis in mesh.axis_names)], mesh.axis_names)
    return None if _processes(first) == _processes(mesh) else first


def _processes(mesh: Mesh) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}


def _sent(array: Array | None, leaf: jax.ShapeDtypeStruct) -> Array:
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding)
    here = {} if array is None else {shard.device: shard.data for shard in array.addressable_shards}
    nothing = np.zeros(sharding.shard_shape(leaf.shape), leaf.dtype)
    placed = [here[at] if at in here else jax.device_put(nothing, at) for at in sharding.addressable_devices]
    return _added_up(jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed), sharding)


@functools.partial(jax.jit, static_argnames="sharding", donate_argnames="array")
def _added_up(array: Array, sharding: NamedSharding) -> Array:
    """What lies on the devices along the replicas, added up bit by bit."""

    def add(part: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(part, np.dtype(f"uint{8 * part.dtype.itemsize}"))
        return jax.lax.bitcast_convert_type(jax.lax.psum(bits, REPLICAS), part.dtype)

    spec: P = sharding.spec
    return jax.shard_map(add, mesh=sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)(array)
