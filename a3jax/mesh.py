"""The device mesh, and the one table that lays parameters and batches over it.

Axes: `data` splits the batch, `fsdp` splits the batch and every parameter's width, `tensor` splits heads, feed-forward
and vocabulary. Parameters name their axes by letter (`a3jax.model.parameters`); `RULES` maps letters to mesh axes. So do
activations, whose batch takes `fsdp`: their width stays whole, and weights are gathered where they are used.
"""

import math

import jax
from flax import nnx
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.config import MeshConfig, ModelConfig
from a3jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
RULES = {"N": None, "D": "fsdp", "F": "tensor", "H": "tensor", "K": "tensor", "E": None, "V": "tensor"}
BATCH = P(("data", "fsdp"))
ACTIVATIONS = {**RULES, "B": BATCH[0], "D": None, "L": None, "R": None}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given. Raises `UserError` if the axes do not multiply to their number."""
    devices = devices or jax.devices()
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {dict(zip(AXES, sizes))}: sizes must be positive, at most one of them -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -math.prod(sizes))
    if math.prod(sizes) != len(devices):
        raise UserError(f"mesh {dict(zip(AXES, sizes))} does not cover {len(devices)} devices; change mesh.data/fsdp/tensor")
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=types)
    except NotImplementedError:  # an axis takes part of one of the torus's, such as 32 of 4 x 4 x 4
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES, axis_types=types)


def check_mesh(mesh: Mesh, model: ModelConfig, batch: int) -> None:
    """Raise `UserError` where a size is not divisible by the mesh axes that split it."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for name, size, axis, parts in [
        ("kv_heads", model.kv_heads, "tensor", tensor),
        ("query_heads", model.query_heads, "tensor", tensor),
        ("ff_width", model.ff_width, "tensor", tensor),
        ("vocab", model.vocab, "tensor", tensor),
        ("width", model.width, "fsdp", fsdp),
        ("the batch of one micro-batch", batch, "data x fsdp", mesh.shape["data"] * fsdp),
    ]:
        if size % parts:
            raise UserError(f"mesh: {name} = {size} is not divisible by {axis} = {parts}")


def partition(axes: tuple[str, ...]) -> P:
    """The layout of an array with the given letters. A mesh axis used twice is a mistake in the declaration."""
    spec = [RULES[letter] for letter in axes]
    used = [axis for axis in spec if axis]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {'x'.join(axes)} use a mesh axis twice: {spec}")
    return P(*spec)


def constrain(x: Array, axes: str) -> Array:
    """An activation with axes such as "BxRxD", laid over the mesh in use; as it is where there is none.

    Left to itself, the compiler may keep weights split over fsdp, and then every device computes the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(ACTIVATIONS[letter] for letter in axes.split("x"))))


def parameter_shardings(parameters: nnx.State, mesh: Mesh) -> nnx.State:
    """A sharding for every leaf of a parameter tree, from the axes it declares."""

    def shard(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(NamedSharding(mesh, partition(variable.get_metadata()["axes"])))

    return jax.tree.map(shard, parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over data and fsdp along their first axis."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())
