"""The plan of an experiment: every stage compiled for a topology, its memory, its bound, and whether all of them fit."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from a3jax.attention.blocks import splash_block
from a3jax.attention.interface import choose
from a3jax.config import Config, ModelConfig, Stage, settled
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.parameters import count as parameter_count
from a3jax.plan.compile import Fits, Memory, TooLarge, fit, mesh_over, model_of
from a3jax.plan.roofline import Roofline, read_costs, roofline
from a3jax.plan.topology import Topology
from a3jax.progress import Progress
from a3jax.train import executable, remat
from a3jax.train.compiled import lower


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum on a topology."""

    name: str
    steps: int
    compiled_as: str
    """The stage whose program was compiled; another one's stands for this where they have as many streams."""
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
            facts |= {**self.bound.ends(), "bound_by": self.bound.bound_by}
        return facts


@dataclass(frozen=True)
class Plan:
    """An experiment on a topology."""

    topology: Topology
    mesh: dict[str, int]
    parameters: int
    remat: str
    """What the forward pass keeps (`a3jax.train.remat`): the experiment's choice, or that made for the chip's memory."""
    attention: str
    """The path, and the blocks that it computes in."""
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
    def steps(self) -> int:
        """Of the whole curriculum."""
        return sum(stage.steps for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of the whole curriculum at its bound; None if it does not fit."""
        return self._of_all(lambda bound: bound.seconds)

    @property
    def serial_seconds(self) -> float | None:
        """Of the whole curriculum if nothing overlaps; None if it does not fit."""
        return self._of_all(lambda bound: bound.serial_seconds)

    def _of_all(self, seconds: Callable[[Roofline], float]) -> float | None:
        bounds = [(stage.steps, stage.bound) for stage in self.stages]
        return None if not self.fits else sum(steps * seconds(bound) for steps, bound in bounds if bound is not None)

    def chip_hours(self) -> tuple[float, float] | None:
        """Of all chips together, at both ends; None if it does not fit."""
        if self.seconds is None or self.serial_seconds is None:
            return None
        return self.topology.chips * self.seconds / 3600, self.topology.chips * self.serial_seconds / 3600

    def as_dict(self, price: float | None = None) -> dict[str, Any]:
        """For JSON. `seconds` and `serial_seconds` are of the whole curriculum, None if it does not fit; so is its cost, at a
        `price` of a chip for an hour. Sizes are of one device.
        """
        largest = max(self.stages, key=lambda stage: stage.memory.total)
        facts = {
            "fits": self.fits,
            "topology": self.topology.name,
            "devices": len(self.topology.devices),
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "parameters": self.parameters,
            "remat": self.remat,
            "attention": self.attention,
            "hbm_bytes": self.topology.chip.hbm_bytes,
            "bytes_per_chip": largest.memory.total,
            "bytes_over": self.bytes_over,
            "seconds": self.seconds,
            "serial_seconds": self.serial_seconds,
            "stages": [stage.as_dict() for stage in self.stages],
            "jax": jax.__version__,
            "libtpu": executable.libtpu_version(),
        }
        if price is not None and (hours := self.chip_hours()):
            facts |= {"cost": price * hours[0], "serial_cost": price * hours[1]}
        return facts


def plan(config: Config, topology: Topology, save: Path | None = None) -> Plan:
    """Compile the step of one stage with one stream and of one with two, or of every stage where they are to be saved.

    Stages with as many streams have one program but for how they draw orders, which takes a few integers a token where the
    rest takes thousands of floats: kernels read ranges as data, so that not even attention differs. The last of a kind
    stands for the others; that FLOPs, traffic and memory agree, a test holds. Raises `UserError` for a mesh that does not
    divide the topology or the model, and where the compiler fails for another reason than memory.
    """
    config = settled(config)
    model = model_of(config)
    mesh = mesh_over(config, model, topology)
    config = remat.chosen(config, model, mesh, topology.chip.hbm_bytes)

    def kind(stage: Stage) -> Stage | tuple[bool, int | None]:
        return (one_stream_is_enough(model, stage.is_ar), stage.batch) if save is None else stage.program

    trained = config.schedule.trained
    kinds = {kind(stage): stage for stage in trained}  # the last of a kind stands for the others
    stages = []
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress("plan", len(trained), "stages"))
        # Side by side, as the compiler leaves cores idle for much of its time; it cannot be stopped, only waited for.
        compilers = ThreadPoolExecutor(os.cpu_count())
        stack.callback(compilers.shutdown, cancel_futures=True)
        compiled = {
            key: compilers.submit(_compiled, config, model, stage, lower(config, model, stage, mesh), topology, mesh, save)
            for key, stage in kinds.items()
        }
        for stage in trained:
            bar.note(f"compiling {stage.name}")
            result = compiled[kind(stage)].result()
            stages.append(dataclasses.replace(result, name=stage.name, steps=stage.length))
            bar.advance()
    return Plan(
        topology, dict(mesh.shape), parameter_count(model), config.train.remat, _attention(config, model), tuple(stages)
    )


def _attention(config: Config, model: ModelConfig) -> str:
    """The path of the steps on TPUs, with its blocks where there is a choice of them."""
    path = choose(config.train.attention, "tpu", config.data.length)
    block = config.train.attention_block or splash_block(config.data.length, model.head_width, max(1, config.mesh.context))
    return f"{path} in blocks of {block}" if path == "splash" and config.mask_block is None else path


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
                executable.save(save, stage, executable.fingerprint(config, model, lowered, mesh), compiled)
    return StagePlan(stage.name, stage.length, stage.name, seconds, memory, over, bound)
