"""What the runs of a sweep have learned and what they have forgotten, from what they logged.

Both are held-out nats per token, against the start: the source model, or the random weights of a run without one.
`forgotten` is what the left-to-right order has lost, `gained` what the order that stands for any order has won. Before its
first step a run is its source, unless its queries start in another way. So of the runs that start from the same weights and
are evaluated alike, the one that reads best from left to right at step 0 speaks for the start of all of them: where one has
successor seeding, these are the source's own figures.

Tokens and FLOPs are those of the plan: steps of full windows, each one document (`a3jax.train.flops.per_window`).
"""

import dataclasses
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from a3jax.checkpoint.folder import MODEL
from a3jax.config import Config, ModelConfig
from a3jax.files.strict import flat, read
from a3jax.sweep.status import Status
from a3jax.sweep.trials import FAILED, RUNS, Sweep, Trial
from a3jax.train import flops
from a3jax.train.metrics import read as read_metrics
from a3jax.train.run import CONFIG

SOURCE = "ar"
"""The order that the source model knew."""
LOSSES = 50
"""Means of the training loss that a curve has, at most."""
NO_DIFFERENCE = ("name", "run", "train.stop_at")


@dataclass(frozen=True)
class Point:
    """A run at an evaluation."""

    step: int
    tokens: int
    flops: float
    """Useful ones, up to here; of full windows, as `tokens`."""
    nll: dict[str, float]
    """Nats per token by order."""
    by_rank: dict[str, list[float | None]]
    by_visible: dict[str, list[float | None]]
    """The same in parts (`a3jax.likelihood.held_out.Nll`)."""


class Loss(NamedTuple):
    """What was trained, the mean of some steps that follow each other, in the orders that these drew."""

    step: int
    """The last of them."""
    tokens: int
    flops: float
    loss: float
    """Nats per predicted token."""


class StageEnd(NamedTuple):
    """Where a stage ends."""

    name: str
    step: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class Curve:
    """A run over its evaluations; without any, there is nothing to compare."""

    name: str
    setting: str
    state: str
    changes: dict[str, tuple[Any, Any]]
    """Fields whose values differ from the baseline's: the baseline's, and its own."""
    stages: tuple[StageEnd, ...]
    points: tuple[Point, ...]
    losses: tuple[Loss, ...]
    source: Point | None
    """The start: the best first evaluation of all runs that start from the same weights and are evaluated alike."""
    untrained: bool
    """Whether all of those start with a query seed that may be untrained, so that none shows a source as it was."""
    forgotten: float | None
    gained: float | None
    """At the last evaluation."""

    @property
    def compared(self) -> bool:
        """Whether it says something of its setting."""
        return bool(self.points) and self.state != "failed"

    @property
    def stage_ends(self) -> list[tuple[str, Point]]:
        """The first evaluation, and those at the end of stages."""
        ends = {end.step: end.name for end in self.stages}
        return [(ends.get(point.step, "start"), point) for point in self.points if point.step in ends or point.step == 0]


def read_curves(folder: Path, sweep: Sweep, found: Sequence[Status], order: str) -> tuple[Curve, ...]:
    """Those of all runs in `folder`, which stand as was `found`; `order` stands for any order."""
    curves = [_curve(folder, sweep, trial, one.state, order) for trial, one in zip(sweep.trials, found)]
    return _against_sources(curves, sweep, order)


def _curve(folder: Path, sweep: Sweep, trial: Trial, state: str, order: str) -> Curve:
    """What a run has measured, not yet compared with anything."""
    run = folder / (FAILED if state == "failed" else RUNS) / trial.name
    config = read(Config, run / CONFIG) if (run / CONFIG).is_file() else trial.config
    stages: tuple[StageEnd, ...] = ()
    points: tuple[Point, ...] = ()
    losses: tuple[Loss, ...] = ()
    if (run / MODEL).is_file():
        rows = read_metrics(run)
        stages = tuple(_stage_ends(config, read(ModelConfig, run / MODEL), rows))
        if config.mask_block == 0:  # the mean over orders of tokens predicted one at a time
            rows = [row | {"nll/random_1": row["nll/bound"]} if "nll/bound" in row else row for row in rows]
        points, losses = tuple(_points(stages, rows, order)), tuple(_losses(stages, rows))
    changed = differences(sweep.baseline, trial.config)
    return Curve(trial.name, trial.setting, state, changed, stages, points, losses, None, False, None, None)


def _against_sources(curves: Sequence[Curve], sweep: Sweep, order: str) -> tuple[Curve, ...]:
    """Each with its start, and what it has forgotten and gained of that."""
    starts: dict[Hashable, list[tuple[Point, bool]]] = {}
    for curve, trial in zip(curves, sweep.trials):
        if curve.points:
            untrained = trial.config.seeding == "learned"
            starts.setdefault(_begins_as(trial.config), []).append((curve.points[0], untrained))

    def compared(curve: Curve, config: Config) -> Curve:
        if not curve.points:
            return curve
        source, untrained = min(starts[_begins_as(config)], key=lambda start: start[0].nll[SOURCE])
        last = curve.points[-1].nll
        forgotten, gained = last[SOURCE] - source.nll[SOURCE], source.nll[order] - last[order]
        return dataclasses.replace(curve, source=source, untrained=untrained, forgotten=forgotten, gained=gained)

    return tuple(compared(curve, trial.config) for curve, trial in zip(curves, sweep.trials))


def _begins_as(config: Config) -> Hashable:
    """The same for runs that start from the same weights, and evaluate them on the same windows in the same orders."""
    weights = config.source or (config.model, config.seed)
    corpora = tuple(source.path for source in config.data.sources)
    windows = config.data.length, config.train.eval_windows, config.data.batch // config.train.accumulate
    return weights, corpora, windows, config.train.compute_dtype


def differences(baseline: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """The fields in which two experiments differ, with both values; None where one has no such field."""
    before, now = (dict(flat(dataclasses.asdict(one))) for one in (baseline, config))
    names = [name for name in (*before, *(now.keys() - before.keys())) if name not in NO_DIFFERENCE]
    return {name: (before.get(name), now.get(name)) for name in sorted(names) if before.get(name) != now.get(name)}


def _stage_ends(config: Config, model: ModelConfig, rows: list[dict[str, Any]]) -> Iterable[StageEnd]:
    """As they are planned; that of a stage which may end early, where it did."""
    step, tokens, total, length = 0, 0, 0.0, config.data.length
    for stage in config.schedule.stages:
        steps = stage.length
        if stage.plateau is not None:
            logged = [row["step"] - step for row in rows if row.get("stage") == config.stage_name(stage)]
            steps = max((done for done in logged if 0 < done <= steps), default=steps)
        windows = steps * config.schedule.windows(stage)
        step, tokens = step + steps, tokens + windows * length
        total += windows * flops.per_window(model, stage, length, config.adapt.distill > 0, config.mask_block)
        yield StageEnd(config.stage_name(stage), step, tokens, total)


def _points(stages: Sequence[StageEnd], rows: list[dict[str, Any]], order: str) -> Iterable[Point]:
    whole = {f"nll/{SOURCE}", f"nll/{order}"}
    evaluated = {row["step"]: row for row in rows if whole <= row.keys()}  # a step that was done again counts once
    for step, row in sorted(evaluated.items()):
        nll, by_rank, by_visible = (
            {name.removeprefix(f"{part}/"): value for name, value in row.items() if name.startswith(f"{part}/")}
            for part in ("nll", "nll_by_rank", "nll_by_visible")
        )
        yield Point(step, *_cost_at(step, stages), nll, by_rank, by_visible)


def _losses(stages: Sequence[StageEnd], rows: list[dict[str, Any]]) -> Iterable[Loss]:
    logged = sorted({row["step"]: row["loss"] for row in rows if row.get("loss") is not None}.items())
    size = -(-len(logged) // LOSSES)
    for begin in range(0, len(logged), max(size, 1)):
        steps, losses = zip(*logged[begin : begin + size])
        yield Loss(steps[-1], *_cost_at(steps[-1], stages), statistics.fmean(losses))


def _cost_at(step: int, stages: Sequence[StageEnd]) -> tuple[int, float]:
    """Tokens and FLOPs up to a step: linear within a stage, whose steps all cost the same."""
    begin = StageEnd("start", 0, 0, 0.0)
    for end in stages:
        if begin.step < step <= end.step:
            share = (step - begin.step) / (end.step - begin.step)
            tokens = begin.tokens + round(share * (end.tokens - begin.tokens))
            return tokens, begin.flops + share * (end.flops - begin.flops)
        begin = end
    return (begin.tokens, begin.flops) if step else (0, 0.0)
