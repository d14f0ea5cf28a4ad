"""The device mesh, and the one table that lays parameters and batches over it.

Axes, from the slowest network to the fastest: `slices` are parts of the machine that only a data-centre network joins,
`data` splits the batch, `expert` splits the batch and the experts of a feed-forward (`a3jax.model.experts`), `fsdp` splits
the batch and every parameter's width, `context` splits the slots of a window
(`a3jax.devices.context_parallel`), `tensor` splits heads, feed-forward and vocabulary. Parameters name their axes by letter
(`a3jax.model.parameters`); `RULES` maps letters to mesh axes. So do activations, whose batch takes `fsdp` and whose slots
take `context`: their width stays whole, and weights are gathered where they are used.

A parameter's width is split over `context` too: devices along it compute different rows, just as those along `fsdp` do,
so they can share one copy of the weights, and whoever splits windows has no memory to spare for more of them.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.config import MeshConfig, ModelConfig
from a3jax.errors import UserError

AXES = ("slices", "data", "expert", "fsdp", "context", "tensor")
"""Outermost first; `MeshConfig` has a field of the same name for each."""
BATCH = ("slices", "data", "expert", "fsdp")
"""What windows are split over."""
WIDTH = ("fsdp", "context")
"""What a parameter's width is split over."""
RULES = {
    "N": None,
    "D": WIDTH,
    "F": "tensor",
    "H": "tensor",
    "K": "tensor",
    "E": None,
    "V": "tensor",
    "A": None,
    "S": None,
    "X": "expert",
}
ACTIVATIONS = {**RULES, "B": BATCH, "D": None, "X": None, "L": "context", "R": "context"}
_NAMES = "/".join(AXES)
T = TypeVar("T")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given.

    Raises `UserError` if the axes do not multiply to their number, or `slices` are not those of the devices.
    """
    devices = list(devices or jax.devices())
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {dict(zip(AXES, sizes))}: sizes must be positive, at most one of them -1")
    given, named = dict(zip(AXES, sizes)), abs(math.prod(sizes))
    if -1 in sizes and len(devices) % named == 0:
        sizes[sizes.index(-1)] = len(devices) // named
    if math.prod(sizes) != len(devices):
        why = f"{named} does not divide {len(devices)}" if -1 in sizes else f"they multiply to {named}"
        raise UserError(f"mesh {given} does not cover {len(devices)} devices; change mesh.{_NAMES}: {why}")
    types = (AxisType.Auto,) * len(AXES)
    slices, inner = sizes[0], (1, *sizes[1:])
    if _granules(devices, slices) == slices > 1:
        by_process = devices[0].platform != "tpu"
        hybrid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, *[1] * len(inner[1:])), devices, process_is_granule=by_process, allow_split_physical_axes=True
        )
        return Mesh(hybrid, AXES, axis_types=types)
    try:
        return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=types)
    except (NotImplementedError, ValueError):
        # An axis takes part of one of the torus's, such as 32 of 4 x 4 x 4; or GPUs are those of several hosts, which
        # `jax.make_mesh` refuses, although their numbers go host by host.
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES, axis_types=types)


def _granules(devices: list[jax.Device], slices: int) -> int:
    """How many parts, joined by the slower network, the devices lie in: TPU slices, elsewhere processes.

    On TPUs `slices` must be just those. Elsewhere a slice may hold several processes, or be a part of the only one
    (simulated devices), which come in the order of the devices.
    """
    tpu = getattr(devices[0], "platform", None) == "tpu"
    found = len({getattr(device, "slice_index" if tpu else "process_index", 0) for device in devices})
    if tpu and slices != found:
        raise UserError(f"mesh.slices = {slices}, but the devices lie in {found} TPU slices; set mesh.slices to {found}")
    if found > 1 and found % slices:
        raise UserError(f"mesh.slices = {slices} does not divide the {found} processes that hold the devices")
    return found


def check_mesh(mesh: Mesh, model: ModelConfig, batch: int = 0, length: int = 0) -> None:
    """Raise `UserError` where a size is not divisible by the mesh axes that split it.

    `batch` and `length` are windows of one micro-batch and their tokens, where they are known beforehand. Over `context` a
    window is cut into twice as many blocks as there are devices (`a3jax.devices.context_parallel`).
    """
    tensor, context, expert = (mesh.shape[axis] for axis in ("tensor", "context", "expert"))
    if expert > 1 and model.experts is None:
        raise UserError(f"mesh.expert is {expert}, but the model has no experts; take mesh.data or mesh.fsdp")
    for name, size, axis, parts in [
        ("query_heads", model.query_heads, "tensor", tensor),
        ("kv_heads", model.kv_heads, "tensor", tensor),
        ("ff_width", model.ff_width, "tensor", tensor),
        ("vocab", model.vocab, "tensor", tensor),
        ("experts", model.experts.count if model.experts else 0, "expert", expert),
        ("width", model.width, "fsdp x context", mesh.shape["fsdp"] * context),
        ("data.length", length, "2 x context", 2 * context if context > 1 else 1),
        ("the batch of one micro-batch", batch, "slices x data x expert x fsdp", batch_parts(mesh)),
    ]:
        if size % parts:
            raise UserError(f"mesh: {name} = {size} is not divisible by {axis} = {parts}")


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the windows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def parts_in_use() -> int:
    """`batch_parts` of the mesh in use, 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_parts(mesh)


def fetched(tree: Any) -> Any:
    """Arrays of the mesh in use as NumPy's, whole in every process; where they lie in parts on several hosts all call it."""

    def fetch(array: Any) -> Any:
        if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
            return jax.device_get(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(fetch, tree)


def filled_up(batch: Sequence[T]) -> list[T]:
    """A batch that the mesh in use splits evenly: its last entry is repeated."""
    return [*batch, *[batch[-1]] * (-len(batch) % parts_in_use())]


def width_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the width of a parameter is split."""
    return math.prod(mesh.shape[axis] for axis in WIDTH)


def partition(axes: tuple[str, ...]) -> P:
    """The layout of an array with the given letters. A mesh axis used twice is a mistake in the declaration."""
    spec = [RULES[letter] for letter in axes]
    used = [axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {'x'.join(axes)} use a mesh axis twice: {spec}")
    return P(*spec)


def constrain(x: Array, axes: str) -> Array:
    """An activation with axes such as "BxRxD", laid over the mesh in use; as it is where there is none.

    Left to itself, the compiler may keep weights split over fsdp, and then every device computes the whole batch.
    """
    return lay(x, *(ACTIVATIONS[letter] for letter in axes.split("x")))


def lay(x: Array, *parts: str | tuple[str, ...] | None) -> Array:
    """`x` with its axes split over the given mesh axes, later ones whole; as it is without a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scattering(weight: Array, axes: tuple[str, ...]) -> Array:
    """A weight with the given letters as it is, whose gradient is summed over devices so that each has its part of the sum.

    What the compiler makes of a sum of which every device keeps a part is its own choice. Over more devices than lie along
    two axes of a torus, libtpu gives all of it to all, which sends twice as much; so its sum is asked for in two steps, the
    first over some of the devices, the second over the others, each of which it does scatter.
    """
    return weight


def _scattered(axes: tuple[str, ...], _: None, gradient: Array) -> tuple[Array]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or _platform(mesh) == "gpu":
        return (gradient,)
    first, then = two_steps(width_parts(mesh))
    # The same devices in the same order, with those that a width is split over divided into two axes.
    sizes = {axis: mesh.shape[axis] for axis in BATCH[:-1]} | {"first": first, "then": then, "tensor": mesh.shape["tensor"]}
    view = AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))
    spec = P(*("first" if RULES[letter] == WIDTH else RULES[letter] for letter in axes))
    return (lay(jax.lax.with_sharding_constraint(gradient, NamedSharding(view, spec)), *partition(axes)),)


scattering.defvjp(lambda weight, axes: (weight, None), _scattered)


def sum_scattered(x: Array, axis: str) -> Array:
    """Inside `shard_map`: the sum of all devices' `x` along a mesh axis, of whose first axis each keeps its part.

    In the two steps of `scattering`.
    """
    first, then = two_steps(jax.sharding.get_abstract_mesh().shape[axis])
    if _platform(jax.sharding.get_abstract_mesh()) == "gpu":
        return jax.lax.psum_scatter(x, axis, tiled=True)
    for groups in (
        [[i * then + j for i in range(first)] for j in range(then)],
        [[i * then + j for j in range(then)] for i in range(first)],
    ):
        if len(groups[0]) > 1:
            x = jax.lax.psum_scatter(x, axis, tiled=True, axis_index_groups=groups)
    return x


def two_steps(devices: int) -> tuple[int, int]:
    """Two factors of a number of devices, as equal as can be, the larger first."""
    smaller = max(size for size in range(1, math.isqrt(devices) + 1) if devices % size == 0)
    return devices // smaller, smaller


def _platform(mesh: AbstractMesh) -> str | None:
    return mesh.abstract_device.platform if mesh.abstract_device else None


def parameter_shardings(parameters: nnx.State, mesh: Mesh) -> nnx.State:
    """A sharding for every leaf of a parameter tree, from the axes it declares."""

    def shard(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(NamedSharding(mesh, partition(variable.get_metadata()["axes"])))

    return jax.tree.map(shard, parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split by windows along their first axis.

    Along `context` every device holds its windows' token numbers whole: it draws their order from all of them, and
    eight bytes a token are less than gathering them would cost.
    """
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())
