"""The training loop: read, step, report, evaluate, save; and go on from where an earlier call of the same run stopped.

Steps are dispatched ahead of the device: the metrics of step n - 1 are read after step n is under way, so the device
never waits for the host. Each curriculum stage has a step of its own, compiled while the stage before it runs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from a3jax import mesh as meshes
from a3jax.config import Config, Stage, check
from a3jax.curriculum import stage_at
from a3jax.data.pipeline import Batches, go_on_from, held_out_windows, training_batches
from a3jax.evaluate.likelihood import HeldOut
from a3jax.interrupt import stop_requests
from a3jax.model.parameters import graph
from a3jax.record import Record
from a3jax.train.checkpoints import Checkpoints
from a3jax.train.compiled import CompiledSteps
from a3jax.train.metrics import last_nll
from a3jax.train.report import Report
from a3jax.train.run import Run, only_process, open_run
from a3jax.train.step import State, abstract_state, compute, init_state, random_params


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

    run: str
    steps: int
    """Optimizer steps done over all calls."""
    loss: float | None
    """Of the last step, nats per predicted token; None if this call made no step."""
    tokens_per_second: float | None
    """Median over this call's steps."""
    nll: dict[str, float]
    """Held-out nats per predicted token by order, at the last evaluation; empty where nothing is held out."""
    stopped_by: int
    """Signal that ended the run early, or 0."""


def train(config: Config) -> Summary:
    """Train an experiment to the end of its curriculum, resuming it if its run folder holds a checkpoint.

    Raises `UserError` for a configuration that cannot work, a loss that is not finite, and a checkpoint that cannot be
    written; what was saved before stays.
    """
    check(config)
    with contextlib.ExitStack() as stack:
        stopped_by = stack.enter_context(stop_requests())
        mesh = meshes.make_mesh(config.mesh)
        run = open_run(config, mesh)
        stack.enter_context(only_process(config.run_folder))
        stack.enter_context(jax.set_mesh(mesh))
        compiled = stack.enter_context(CompiledSteps(config, run.model, mesh))
        checkpoints = stack.enter_context(Checkpoints(config.run_folder, config.train.keep))
        source = Batches(run.corpora, config.data, config.steps, config.seed, _rows_here(mesh, config.data.batch))
        position = _begin(run, mesh, checkpoints, source)
        stack.enter_context(contextlib.closing(position.batches))
        report = stack.enter_context(Report(config, run.model, mesh, position.step, source))
        steps = _steps(run, mesh, position, compiled, checkpoints, report, stopped_by)
    folder = config.run_folder
    return Summary(str(folder), steps, report.loss, report.tokens_per_second, last_nll(folder), stopped_by())


class _Position(NamedTuple):
    """Where a run stands: all that a checkpoint holds."""

    step: int
    state: State
    record: Record
    batches: grain.DatasetIterator


def _begin(run: Run, mesh: Mesh, checkpoints: Checkpoints, source: Batches) -> _Position:
    """The newest checkpoint of the run, or its first step."""
    config = run.config
    batches = iter(training_batches(source, config.data.workers))
    if checkpoints.newest is not None:
        saved = checkpoints.restore(abstract_state(config, run.model, mesh))
        go_on_from(batches, saved.data, saved.step)
        return _Position(saved.step, saved.state, saved.record, batches)
    params = run.source.load(mesh) if run.source else random_params(config, run.model, mesh)
    return _Position(0, init_state(config, params, run.model, mesh), run.record, batches)


def _steps(
    run: Run,
    mesh: Mesh,
    start: _Position,
    compiled: CompiledSteps,
    checkpoints: Checkpoints,
    report: Report,
    stopped_by: Callable[[], int],
) -> int:
    """Everything from `start` to the end of the curriculum, or to a request to stop. Returns the steps then done."""
    config, settings = run.config, run.config.train
    step, state, record, batches = start
    put = _put(meshes.batch_sharding(mesh))
    put_rows = _put_rows(mesh, config.data.batch)
    windows = held_out_windows(run.corpora, config.data.length, settings.eval_windows)
    held_out = HeldOut(graph(run.model), run.model, windows, compute(config), config.data.batch // settings.accumulate, put)
    if step == 0:
        report.evaluation(step, functools.partial(held_out.nll, state.params))
    if stopped_by():
        return step
    while step < config.steps:
        index, stage = stage_at(config.curriculum, step)
        batch = {name: put_rows(array) for name, array in next(batches).items()}
        with contextlib.nullcontext() if compiled.ready(stage) else report.pause(f"compiling {stage.name}"):
            run_step = compiled.at(stage, then=next(iter(config.curriculum[index + 1 :]), None))
        state, metrics = run_step(state, batch)
        step += 1
        report.step(step, stage, metrics)
        record = _after(record, stage, config)
        last, stop = step == config.steps, bool(stopped_by())
        if last or step % settings.eval_every == 0:
            report.evaluation(step, functools.partial(held_out.nll, state.params))
        if last or step % settings.save_every == 0 or stop:
            report.flush()  # a loss that is not finite stops the run before it is saved
            with report.pause("saving"):
                checkpoints.save(step, state, record, batches.get_state())
        if stop:
            break
    report.flush()
    return step


def _after(record: Record, stage: Stage, config: Config) -> Record:
    """The record after one more step."""
    stages = record.stages if record.stages[-1:] == (stage.name,) else (*record.stages, stage.name)
    tokens = record.tokens + config.data.batch * config.data.length
    return dataclasses.replace(record, steps=record.steps + 1, tokens=tokens, stages=stages)


def _put(sharding: jax.sharding.NamedSharding) -> Callable[[np.ndarray], jax.Array]:
    """Host array -> global device array; every process holds the whole array and lays out its own share."""

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return put


def _rows_here(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a batch that devices of this process hold: those that it reads."""
    places = meshes.batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[place] for place in places]))


def _put_rows(mesh: Mesh, batch: int) -> Callable[[np.ndarray], jax.Array]:
    """The rows of this process -> global device array of the whole batch."""
    rows, sharding = _rows_here(mesh, batch), meshes.batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        shape, here = (batch, *array.shape[1:]), lambda index: np.searchsorted(rows, np.arange(batch)[index[0]])
        return jax.make_array_from_callback(shape, sharding, lambda index: array[here(index)])

    return put
