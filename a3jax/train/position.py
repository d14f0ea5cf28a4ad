"""Where a run stands: at its first step, at a checkpoint, after one more step, or back at a checkpoint."""

import dataclasses
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from a3jax.checkpoint.provenance import Provenance
from a3jax.curriculum.plateau import PlateauState
from a3jax.data.own import OwnBatches, Reading
from a3jax.data.pipeline import Batches, go_on_from
from a3jax.devices.accelerators import environment
from a3jax.errors import UserError
from a3jax.train.checkpoints import Checkpoints, Restored
from a3jax.train.run import Run
from a3jax.train.state import State, abstract_state, init_state, random_params, with_new, with_normal_seed


class Position(NamedTuple):
    """Where a run stands: all that a checkpoint holds."""

    step: int
    state: State
    record: Provenance
    batches: Reading
    standing: PlateauState


def begin(run: Run, mesh: Mesh, checkpoints: Checkpoints, source: Batches | OwnBatches) -> Position:
    """The newest checkpoint of the run, or its first step."""
    config = run.config
    batches = source.reading(config.data.workers)
    teacher = run.source.load(mesh) if run.source and config.adapt.distill else None
    saved = checkpoints.restore(abstract_state(config, run.model, mesh), lambda: _source_weights(run, mesh))
    if saved is not None:
        go_on_from(batches, saved.data, saved.step)
    return at_checkpoint(run, mesh, saved, teacher, batches)


def at_checkpoint(run: Run, mesh: Mesh, saved: Restored | None, teacher: nnx.State | None, batches: Reading) -> Position:
    """At a checkpoint or, where there is none, before the first step; reading on from where `batches` are."""
    if saved is None:
        record = _here(run.record)
        return Position(0, _first_state(run, mesh)._replace(teacher=teacher), record, batches, PlateauState())
    return Position(saved.step, saved.state._replace(teacher=teacher), _here(saved.record), batches, saved.standing)


def _here(record: Provenance) -> Provenance:
    """The record, with what computes from now on."""
    with_this = (*record.trained_with, environment())
    return record if with_this[-2:-1] == with_this[-1:] else dataclasses.replace(record, trained_with=with_this)


def _source_weights(run: Run, mesh: Mesh) -> nnx.State:
    assert run.source is not None
    return run.source.load(mesh)


def _first_state(run: Run, mesh: Mesh) -> State:
    if run.source is None:
        params = random_params(run.config, run.model, mesh)
    else:
        params = with_new(_source_weights(run, mesh), run.config, run.model, mesh)
    if run.config.adapt.query_seed == "normal":
        params = with_normal_seed(params, run.config)
    return init_state(run.config, params, run.model, mesh)


def after(record: Provenance, stage: str) -> Provenance:
    """The record after one more step, but for its tokens, which are known when the step has been read."""
    stages = record.stages if record.stages[-1:] == (stage,) else (*record.stages, stage)
    return dataclasses.replace(record, steps=record.steps + 1, stages=stages)


class Rollbacks(NamedTuple):
    """How often a run has gone back to the same step, one time after the other."""

    step: int = 0
    times: int = 0

    def to(self, step: int, limit: int) -> "Rollbacks":
        """Once more, to `step`. Raises `UserError` after `limit` times."""
        times = self.times + 1 if step == self.step else 1
        if times > limit:
            raise UserError(f"{limit} rollbacks to step {step} did not help; lower optimizer.peak-lr")
        return Rollbacks(step, times)
