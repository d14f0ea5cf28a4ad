"""Which mesh and batch: the divisions of a topology that a model allows, the likely ones compiled, those that fit ranked.

There are more meshes than anyone wants to compile, so an estimate decides which to compile first; what is reported is
what the compiler found. The estimate knows the usual traffic of such a mesh (Rajbhandari et al., arXiv 1910.02054;
Shoeybi et al., arXiv 1909.08053): weights gathered over `fsdp` forward and backward and their gradients scattered,
gradients summed over `data`, activations summed over `tensor` twice a layer and pass, keys gathered over `context`.
The search tries `data`, `fsdp` and `tensor`; `context` and `slices` stay as the experiment has them.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from a3jax.config import Config, MeshConfig, ModelConfig, settled
from a3jax.devices.mesh import AXES
from a3jax.errors import UserError
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.plan.compile import Fits, fit, mesh_over, model_of
from a3jax.plan.roofline import Roofline, read_costs, roofline
from a3jax.plan.topology import Topology
from a3jax.progress import Progress
from a3jax.train import flops, remat
from a3jax.train.compiled import lower
from a3jax.train.optimizer import moment_bytes


@dataclass(frozen=True)
class Candidate:
    """A mesh and a batch, and what became of them."""

    config: Config
    bytes_per_chip: int
    bytes_over: int
    bound: Roofline | None
    """None where it does not fit."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts: dict[str, Any] = {
            "mesh": dataclasses.asdict(self.config.mesh),
            "batch": self.config.data.batch,
            "remat": self.config.train.remat,
            "bytes_per_chip": self.bytes_per_chip,
            "bytes_over": self.bytes_over,
        }
        if (bound := self.bound) is not None:
            speed = bound.tokens / bound.seconds
            facts |= {**bound.ends(), "bound_by": bound.bound_by, "tokens_per_second": speed, "mfu": bound.mfu}
        return facts


def search(config: Config, topology: Topology, batches: Sequence[int], limit: int) -> list[Candidate]:
    """Compile up to `limit` meshes and batches, the most promising first; those that fit come first, fastest first.

    The step compiled is that of the stage with most work. Raises `UserError` if no mesh divides topology, model and batch.
    """
    model = model_of(config)
    trained = config.schedule.trained
    stage = max(trained, key=lambda stage: flops.per_window(model, stage, config.data.length, mask_block=config.mask_block))
    config = dataclasses.replace(settled(config), curriculum=(dataclasses.replace(stage, batch=None),))
    likely = sorted(_allowed(config, model, topology, batches), key=lambda one: _seconds_per_token(one, model, topology))
    if not likely:
        sizes = ", ".join(map(str, batches))
        raise UserError(f"no mesh over {topology.name} divides this model and a batch of {sizes}; give another --batches")
    done: list[Candidate] = []
    with Progress("search", min(limit, len(likely)), "compiled") as bar:
        for one in likely:
            if len(done) == limit:
                break
            if any(_larger(one, other.config) for other in done if other.bytes_over):
                continue
            bar.note(f"{_name(one.mesh)}, batch {one.data.batch}")
            done.append(_try(one, model, topology))
            bar.advance()
    return sorted(done, key=_rank)


def _allowed(config: Config, model: ModelConfig, topology: Topology, batches: Sequence[int]) -> list[Config]:
    """Every mesh and batch that divides, and whose parameters and saved activations alone do not fill a device."""
    context, slices, expert = (max(1, size) for size in (config.mesh.context, config.mesh.slices, config.mesh.expert))
    devices = len(topology.devices) // (context * slices * expert)
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    found = []
    for data, fsdp, batch in itertools.product(sizes, sizes, batches):
        if devices % (data * fsdp) or batch % config.train.accumulate:
            continue
        one = dataclasses.replace(
            config,
            mesh=MeshConfig(data, fsdp, devices // (data * fsdp), context, slices, expert),
            data=dataclasses.replace(config.data, batch=batch),
        )
        try:
            mesh_over(one, model, topology)
        except UserError:
            continue
        if _least_bytes(one, model) <= topology.chip.hbm_bytes:
            found.append(one)
    return found


def _least_bytes(config: Config, model: ModelConfig) -> int:
    """Of a device: parameters and moments, and what every layer leaves for the backward pass."""
    mesh = config.mesh
    held, changed = remat.held_and_changed(config, model, mesh.expert)
    held = jnp.dtype("float32").itemsize * held + moment_bytes(config.optimizer) * changed
    state = held // (mesh.fsdp * mesh.context * mesh.tensor)
    return state + model.layers * _rows(config, model) * model.width * jnp.dtype(config.train.compute_dtype).itemsize


def _rows(config: Config, model: ModelConfig) -> int:
    """Rows of both streams, or of both copies of block diffusion, on one device at one time."""
    once = one_stream_is_enough(model, config.schedule.stages[0].is_ar) and not config.mask_block
    return _tokens(config) // config.mesh.context * (1 if once else 2)


def _tokens(config: Config) -> int:
    """Of the windows that a device computes, or its share of them, at one time."""
    mesh = config.mesh
    return (
        config.data.batch
        // (config.train.accumulate * mesh.slices * mesh.data * mesh.expert * mesh.fsdp)
        * config.data.length
    )


def _seconds_per_token(config: Config, model: ModelConfig, topology: Topology) -> tuple[float, float]:
    """The larger of arithmetic and communication as estimated, then their sum to decide between equals."""
    mesh, parts = config.mesh, config.train.accumulate
    sharing, copies = mesh.fsdp * mesh.context, mesh.slices * mesh.data * mesh.expert
    width = jnp.dtype(config.train.compute_dtype).itemsize
    weights = width * remat.held_and_changed(config, model, mesh.expert)[0] / mesh.tensor
    gathered = 3 * parts * weights * (sharing - 1) / sharing
    reduced = 2 * parts * weights / sharing * (copies - 1) / copies
    summed = 4 * model.layers * parts * _rows(config, model) * model.width * width * 2 * (mesh.tensor - 1) / mesh.tensor
    token = 2 * model.layers * model.kv_heads * model.head_width * width / mesh.tensor
    sent = 4 * model.layers * parts * _rows(config, model) * model.width * width * (mesh.expert - 1)
    keys = 3 * parts * _tokens(config) * token * (mesh.context - 1) / mesh.context
    communication = (gathered + reduced + summed + sent + keys) / topology.chip.ici_bytes_per_second
    stage, length = config.schedule.stages[0], config.data.length
    useful = config.data.batch * flops.per_window(model, stage, length, config.adapt.distill > 0, config.mask_block)
    arithmetic = useful / len(topology.devices) / topology.flops_per_second
    tokens = config.data.batch * config.data.length
    return max(arithmetic, communication) / tokens, (arithmetic + communication) / tokens


def _larger(one: Config, other: Config) -> bool:
    return one.mesh == other.mesh and one.data.batch >= other.data.batch


def _try(config: Config, model: ModelConfig, topology: Topology) -> Candidate:
    stage = config.schedule.stages[0]
    mesh = mesh_over(config, model, topology)
    config = remat.chosen(config, model, mesh, topology.chip.hbm_bytes)
    result = fit(lower(config, model, stage, mesh), config, model, mesh)
    if isinstance(result, Fits):
        bound = roofline(read_costs(result.compiled), config, model, stage, topology)
        return Candidate(config, result.memory.total, 0, bound)
    return Candidate(config, result.memory.total, result.memory.total - result.available, None)


def _rank(candidate: Candidate) -> tuple[float, ...]:
    """Those that fit by time per token, equal ones by what the bound lets overlap; then the others by bytes over."""
    bound = candidate.bound
    if bound is None:
        return 1, candidate.bytes_over
    return 0, bound.seconds / bound.tokens, bound.serial_seconds / bound.tokens


def _name(mesh: MeshConfig) -> str:
    return " x ".join(f"{axis} {getattr(mesh, axis)}" for axis in AXES)
