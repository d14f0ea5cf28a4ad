"""Stages that end early, once held-out NLL no longer falls.

A run whose stages end early passes over the steps that they had left, so the only thing to remember is how many these are:
step n of the run is step n + skipped of its curriculum, for what is drawn and for the learning rate alike. Batches and
random draws follow the steps of the run, and none is passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from a3jax.curriculum.schedule import Schedule


@dataclass(frozen=True)
class PlateauState:
    """Where a run stands in its curriculum; saved with every checkpoint."""

    skipped: int = 0
    """Steps of the curriculum that were passed over."""
    stage: int = 0
    """The stage that the next two are about."""
    best: float | None = None
    """Held-out NLL that must be improved on, nats per token."""
    stale: int = 0
    """Evaluations since then."""


def judge(state: PlateauState, schedule: Schedule, step: int, nll: Mapping[str, float]) -> PlateauState:
    """The standing after an evaluation at which `step` steps were done."""
    position = step + state.skipped
    index, stage = schedule.at(position - 1)
    if (rule := stage.plateau) is None:
        return state
    best, stale = (state.best, state.stale) if state.stage == index else (None, 0)
    if best is None or nll[rule.order] < best - rule.delta:
        return PlateauState(state.skipped, index, nll[rule.order])
    if stale + 1 < rule.evaluations:
        return PlateauState(state.skipped, index, best, stale + 1)
    return PlateauState(state.skipped + schedule.ends[index] - position, index)
