"""The compiled steps of a run: one for each kind of stage, the next one compiled in the background while this one runs.

With `train.executables` they are loaded instead, all of them before the first step, so that none is found missing later.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.devices import mesh as meshes
from a3jax.devices.compilation import options
from a3jax.train import executable, remat
from a3jax.train.objectives import Batch
from a3jax.train.state import abstract_state
from a3jax.train.step import make_step


class CompiledSteps:
    """`with CompiledSteps(...) as steps: steps.at(stage, then=next_stage)`. Stages that differ in length share a step."""

    def __init__(self, config: Config, model: ModelConfig, mesh: Mesh):
        self._config, self._model, self._mesh = config, model, mesh
        self._compiler = ThreadPoolExecutor(1, "compile")
        self._steps: dict[Stage, Future[jax.stages.Compiled]] = {}

    def __enter__(self) -> Self:
        """Raises `UserError` where steps are to be loaded and one of them cannot be."""
        if self._config.train.executables is not None:
            for stage in self._config.schedule.trained:
                self._begin(stage).result()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget what is waiting; what is being compiled cannot be stopped, and ends when it ends."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def ready(self, stage: Stage) -> bool:
        """Whether `at` would return at once."""
        step = self._steps.get(stage.program)
        return step is not None and step.done()

    def at(self, stage: Stage, then: Stage | None, give_up: Callable[[], int] = lambda: 0) -> jax.stages.Compiled | None:
        """The step of `stage`, (State, Batch) -> (State, Metrics); that of the stage `then` is begun behind it.

        None if `give_up` says so before it is there.
        """
        step = self._begin(stage)
        if then is not None:
            self._begin(then)
        while not give_up():
            with contextlib.suppress(TimeoutError):
                return step.result(timeout=0.1)
        return None

    def _begin(self, stage: Stage) -> Future[jax.stages.Compiled]:
        program = stage.program
        if program not in self._steps:
            self._steps[program] = self._compiler.submit(compile_step, self._config, self._model, program, self._mesh)
        return self._steps[program]


def compile_step(config: Config, model: ModelConfig, stage: Stage, mesh: Mesh) -> jax.stages.Compiled:
    """The step of one stage, compiled from shapes alone, or loaded; `UserError` if that is asked for and cannot be."""
    lowered, folder = lower(config, model, stage, mesh), config.train.executables
    if folder is None:
        return lowered.compile(options(mesh))
    config = remat.chosen(config, model, mesh, remat.device_memory(mesh.devices.flat[0]))
    return executable.load(Path(folder), stage, executable.fingerprint(config, model, lowered, mesh), lowered, mesh)


def lower(config: Config, model: ModelConfig, stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
    """The step of `stage` as the compiler gets it, from shapes alone."""
    with jax.set_mesh(mesh):
        state, batch = abstract_state(config, model, mesh), abstract_batch(config, stage, mesh)
        return make_step(config, model, stage, mesh).lower(state, batch)


def abstract_batch(config: Config, stage: Stage, mesh: Mesh) -> Batch:
    """The shapes of a stage's batch, and where it lies."""
    rows, sharding = config.schedule.windows(stage), meshes.batch_sharding(mesh)
    columns = {"tokens": (config.data.length, jnp.int32), "segments": (config.data.length, jnp.int32)}
    if stage.changes:
        columns |= {"weights": (len(stage.parts), jnp.float32), "sizes": (len(stage.parts), jnp.int32)}
    shapes = {name: jax.ShapeDtypeStruct((rows, width), dtype, sharding=sharding) for name, (width, dtype) in columns.items()}
    return shapes  # type: ignore[return-value]
