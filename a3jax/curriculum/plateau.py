"""Stages that end early, once held-out NLL no longer falls.

A run whose stages end early passes over the steps that they had left, so the only thing to remember is how many these are:
step n of the run is step n + skipped of its curriculum, for what is drawn and for the learning rate alike. Batches and
random draws follow the steps of the run, and none is passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from a3jax.curriculum.schedule import stage_at
from a3jax.curriculum.stage import Stage


@dataclass(frozen=True)
class Standing:
    """Where a run stands in its curriculum; saved with every checkpoint."""

    skipped: int = 0
    """Steps of the curriculum that were passed over."""
    stage: int = 0
    """The stage that the next two are about."""
    best: float | None = None
    """Held-out NLL that must be improved on, nats per token."""
    stale: int = 0
    """Evaluations since then."""


def judge(standing: Standing, stages: Sequence[Stage], step: int, nll: Mapping[str, float]) -> Standing:
    """The standing after an evaluation at which `step` steps were done."""
    position = step + standing.skipped
    index, stage = stage_at(stages, position - 1)
    if (rule := stage.plateau) is None:
        return standing
    best, stale = (standing.best, standing.stale) if standing.stage == index else (None, 0)
    if best is None or nll[rule.order] < best - rule.delta:
        return Standing(standing.skipped, index, nll[rule.order])
    if stale + 1 < rule.evaluations:
        return Standing(standing.skipped, index, best, stale + 1)
    end = sum(before.length for before in stages[: index + 1])
    return Standing(standing.skipped + end - position, index)
