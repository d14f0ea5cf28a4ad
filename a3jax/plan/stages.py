"""The plan of an experiment: every stage compiled for a topology, its memory, its bound, and whether all of them fit."""

import dataclasses
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.model.parameters import count as parameter_count
from a3jax.plan import executable
from a3jax.plan.compile import Fits, Memory, TooLarge, fit, lower, mesh_over, model_of, same_but_for_constants, settled
from a3jax.plan.roofline import Roofline, read_costs, roofline
from a3jax.plan.topology import Topology
from a3jax.progress import Progress


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum on a topology."""

    name: str
    steps: int
    compiled_as: str
    """The stage whose program this one shares but for constants; its own name where it was compiled itself."""
    compile_seconds: float
    memory: Memory
    bytes_over: int
    """What a device lacks; 0 if the stage fits."""
    bound: Roofline | None
    """None for a stage that does not fit."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the bound's fields beside the others."""
        facts = {name: getattr(self, name) for name in ("name", "steps", "compiled_as", "compile_seconds", "bytes_over")}
        facts |= {"fits": not self.bytes_over, "memory": dataclasses.asdict(self.memory)}
        if self.bound is not None:
            facts |= dataclasses.asdict(self.bound)
            facts |= {"seconds": self.bound.seconds, "bound_by": self.bound.bound_by}
        return facts


@dataclass(frozen=True)
class Plan:
    """An experiment on a topology."""

    topology: Topology
    mesh: dict[str, int]
    parameters: int
    remat: str
    """What the forward pass keeps (`a3jax.train.remat`): the experiment's choice, or that made for the chip's memory."""
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every stage does."""
        return not self.bytes_over

    @property
    def bytes_over(self) -> int:
        """What a device lacks for the largest stage; 0 if all fit."""
        return max(stage.bytes_over for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of the whole curriculum at its bound; None if it does not fit."""
        bounds = [(stage.steps, stage.bound) for stage in self.stages]
        return None if not self.fits else sum(steps * bound.seconds for steps, bound in bounds if bound is not None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `seconds` is of the whole curriculum at its bound, None if it does not fit; sizes are of one device."""
        largest = max(self.stages, key=lambda stage: stage.memory.total)
        return {
            "fits": self.fits,
            "topology": self.topology.name,
            "devices": len(self.topology.devices),
            "mesh": self.mesh,
            "parameters": self.parameters,
            "remat": self.remat,
            "hbm_bytes": self.topology.chip.hbm_bytes,
            "bytes_per_chip": largest.memory.total,
            "bytes_over": self.bytes_over,
            "seconds": self.seconds,
            "stages": [stage.as_dict() for stage in self.stages],
            "jax": jax.__version__,
            "libtpu": executable.libtpu_version(),
        }


def plan(config: Config, topology: Topology, save: Path | None = None) -> Plan:
    """Compile the step of every stage, one of each kind, or each of them where they are to be saved.

    Raises `UserError` for a mesh that does not divide the topology or the model, and where the compiler fails for another
    reason than memory.
    """
    model = model_of(config)
    mesh = mesh_over(config, model, topology)
    config = settled(config, model, mesh, topology)
    work: dict[str, Future[StagePlan]] = {}
    results = []
    # The compiler leaves a core idle for much of its time, so stages are compiled side by side.
    with ThreadPoolExecutor(os.cpu_count()) as compilers, Progress("plan", len(config.curriculum), "stages") as bar:
        for stage in config.curriculum:
            lowered = lower(config, model, stage, mesh)
            key = lowered.as_text() if save else same_but_for_constants(lowered)
            if key not in work:
                work[key] = compilers.submit(_compiled, config, model, stage, lowered, topology, mesh, save)
            results.append(work[key])
        stages = []
        for stage, result in zip(config.curriculum, results):
            bar.note(f"compiling {stage.name}")
            stages.append(dataclasses.replace(result.result(), name=stage.name, steps=stage.steps))
            bar.advance()
    return Plan(topology, dict(mesh.shape), parameter_count(model), config.train.remat, tuple(stages))


def _compiled(
    config: Config,
    model: ModelConfig,
    stage: Stage,
    lowered: jax.stages.Lowered,
    topology: Topology,
    mesh: Mesh,
    save: Path | None,
) -> StagePlan:
    begin = time.perf_counter()
    result = fit(lowered, config, model, mesh)
    seconds = time.perf_counter() - begin
    over, bound = 0, None
    match result:
        case TooLarge(memory, available):
            over = memory.total - available
        case Fits(compiled, memory):
            bound = roofline(read_costs(compiled), config, model, stage, topology)
            if save is not None:
                executable.save(save, stage, lowered, compiled, mesh)
    return StagePlan(stage.name, stage.steps, stage.name, seconds, memory, over, bound)
