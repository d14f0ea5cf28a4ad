"""Step -> what is drawn. Pure: stages come from the configuration, nothing is remembered.

`settle` turns stages as users write them into stages that are counted in steps and say everything themselves: a ramp from
the stage before becomes parts whose weights or sizes change, an AR share one more part. A `Schedule` of such stages then
says what trains a step.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from a3jax.curriculum.stage import AR, Part, Plateau, Stage
from a3jax.errors import UserError


class Parts(NamedTuple):
    """What the windows of one step draw from, one entry for each of the stage's P parts."""

    weight_P: np.ndarray
    """float32."""
    size_P: np.ndarray
    """int32, tokens of a group."""


@dataclass(frozen=True)
class Schedule:
    """A curriculum counted in steps: what trains a step, how many windows that reads, and where it ends.

    Steps are numbered from 0. `stages` are those of `settle`; a stage of n steps owns exactly n of them.
    """

    stages: tuple[Stage, ...]
    batch: int
    """Windows of a step, where its stage has no batch of its own."""

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """For every stage the step after its last."""
        return tuple(itertools.accumulate(self.lengths))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The steps of every stage."""
        return tuple(stage.length for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole curriculum."""
        return self.ends[-1]

    @property
    def trained(self) -> tuple[Stage, ...]:
        """The stages that have a step."""
        return tuple(stage for stage in self.stages if stage.length)

    @property
    def may_end_early(self) -> bool:
        """Whether a plateau can end a stage before its time."""
        return any(stage.plateau for stage in self.stages)

    @property
    def slack(self) -> int:
        """Places by which documents may grow where blanks have an end, the end's own included; 0 where none has."""
        return max((stage.slack_of_parts for stage in self.trained), default=0)

    def at(self, step: int) -> tuple[int, Stage]:
        """The index and the stage that train `step`. Raises IndexError at or after the end of the curriculum."""
        index = bisect.bisect_right(self.ends, step)
        if index == len(self.stages):
            raise IndexError(f"step {step} is past the end of a curriculum of {self.steps} steps")
        return index, self.stages[index]

    def after(self, index: int) -> Stage | None:
        """The stage that trains once stage `index` has ended, if any does."""
        return next((stage for stage in self.stages[index + 1 :] if stage.length), None)

    def mixture(self, step: int) -> Parts:
        """Weights and group sizes of the parts of the stage that trains `step`.

        At a stage's first step they are what they come from, after `ramp` steps what they go to. Raises IndexError at or
        after the end of the curriculum.
        """
        index, stage = self.at(step)
        done = step - (self.ends[index] - stage.length)
        share = min(1.0, done / stage.ramp) if stage.ramp else 1.0

        def between(begin: float | None, end: float) -> float:
            return end if begin is None else begin + (end - begin) * share

        weights = [between(part.weight_from, part.weight) for part in stage.parts]
        sizes = [round(between(part.size_from, part.group_size)) for part in stage.parts]
        return Parts(np.array(weights, np.float32), np.array(sizes, np.int32))

    def rows(self, step: int, count: int) -> dict[str, np.ndarray]:
        """`mixture` as arrays of a batch, the same in each of its `count` rows; none for a stage that does not change."""
        if not self.at(step)[1].changes:
            return {}
        parts = self.mixture(step)
        return {"weights": np.tile(parts.weight_P, (count, 1)), "sizes": np.tile(parts.size_P, (count, 1))}

    def windows(self, stage: Stage) -> int:
        """Windows of a step of `stage`."""
        return self.batch if stage.batch is None else stage.batch

    @property
    def batch_S(self) -> np.ndarray:
        """Windows of every step, int64."""
        return np.repeat([self.windows(stage) for stage in self.stages], self.lengths)


def settle(
    stages: Sequence[Stage],
    batch: int,
    length: int,
    total_steps: int | None = None,
    total_tokens: int | None = None,
    ar_share: float = 0.0,
) -> tuple[Stage, ...]:
    """The same stages, counted in steps and each complete in itself; settled stages come out as they are.

    `batch` windows of `length` tokens make a step where a stage has no batch of its own. Raises `UserError`, naming the
    stage, for a length that is missing, given twice or does not fit, and for orders that contradict each other.
    """
    _check(stages, ar_share)
    result: list[Stage] = []
    before: tuple[Part, ...] = ()
    for where, stage, steps in zip(_names(stages), stages, _steps(stages, batch, length, total_steps, total_tokens)):
        parts = stage.parts
        if stage.ramp and steps:
            if stage.ramp > steps:
                raise UserError(f"{where}.ramp is {stage.ramp}, more than the stage's {steps} steps")
            if not stage.changes:
                parts = _ramp(where, stage, before)
        if ar_share:
            parts = _with_ar(parts, ar_share)
        before = _ended(stage.parts) if steps else before
        stage = dataclasses.replace(stage, steps=steps, tokens=None, fraction=None)
        result.append(stage if parts == stage.parts else stage.drawing(parts))
    if not any(stage.length for stage in result):
        raise UserError("curriculum has no step; give at least one stage a length")
    return tuple(result)


def _names(stages: Sequence[Stage]) -> list[str]:
    return [f"curriculum.{i} ({stage.name})" for i, stage in enumerate(stages)]


def _steps(stages: Sequence[Stage], batch: int, length: int, total_steps: int | None, total_tokens: int | None) -> list[int]:
    """The optimizer steps of every stage."""
    if total_steps is not None and total_tokens is not None:
        raise UserError("total-steps and total-tokens are both given; give one of them")
    for where, stage in zip(_names(stages), stages):
        found = [name for name in ("steps", "tokens", "fraction") if getattr(stage, name) is not None]
        if len(found) != 1:
            what = f"is given as {' and '.join(found)}" if found else "is missing"
            raise UserError(f"{where}: its length {what}; give one of steps, tokens and fraction")
        if not (value := getattr(stage, found[0])) >= 0:
            raise UserError(f"{where}.{found[0]} is {value}; it must be at least 0")
    per_step = [length * (stage.batch or batch) for stage in stages]
    counts = [stage.steps if stage.tokens is None else -(-stage.tokens // n) for stage, n in zip(stages, per_step)]
    shares = {where: stage.fraction for where, stage in zip(_names(stages), stages) if stage.fraction is not None}
    total = total_steps if total_tokens is None else total_tokens
    if not shares:
        if total is not None:
            raise UserError("total-steps or total-tokens is given, but no stage is a fraction of it; leave it out")
        return [count or 0 for count in counts]
    if total is None:
        raise UserError(f"{next(iter(shares))} is a fraction; give total-steps or total-tokens, which it is a fraction of")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise UserError(f"the fractions of {', '.join(shares)} add up to {sum(shares.values()):g}; they must add up to 1")
    units = per_step if total_steps is None else [1] * len(stages)
    left = total - sum(count * unit for count, unit in zip(counts, units) if count is not None)
    if left < 0:
        name = "total-steps" if total_steps is not None else "total-tokens"
        raise UserError(f"{name} is {total}, but the stages before or between {', '.join(shares)} take {total - left} alone")
    owed, result = 0.0, []
    for stage, count, unit in zip(stages, counts, units):
        if count is None:
            owed += left * (stage.fraction or 0.0)
            count = max(0, round(owed / unit))  # what rounding leaves is the next stage's
            owed -= count * unit
        result.append(count)
    return result


def _ramp(where: str, stage: Stage, before: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of a stage that comes gradually after a stage of the parts `before`."""
    if not before:
        raise UserError(f"{where}.ramp is {stage.ramp}, but no stage is before it; leave ramp out")
    if stage.ramp_of == "size":
        if len(before) > 1 or stage.mixture:
            raise UserError(
                f"{where}.ramp-of is size, which needs one kind of order before and after; give size-from to parts"
            )
        return (dataclasses.replace(stage.parts[0], size_from=before[0].group_size),)
    coming = [dataclasses.replace(part, weight_from=0.0) for part in _ended(stage.parts)]
    going = [dataclasses.replace(part, weight=0.0, weight_from=part.weight) for part in before]
    return _merged([*coming, *going])


def _ended(parts: Sequence[Part]) -> tuple[Part, ...]:
    """What remains of parts at the end of their stage, with weights that add up to 1."""
    total = sum(part.weight for part in parts)
    return tuple(
        dataclasses.replace(part, weight=part.weight / total, weight_from=None, size_from=None)
        for part in parts
        if part.weight
    )


def _with_ar(parts: Sequence[Part], share: float) -> tuple[Part, ...]:
    """The parts with plain autoregression beside them, which has the share at every step: all weights are straight lines."""
    odds = share / (1 - share)
    begin, end = (odds * sum(weights) for weights in zip(*((_begin(part), part.weight) for part in parts)))
    return _merged([*parts, dataclasses.replace(AR, weight=end, weight_from=None if math.isclose(begin, end) else begin)])


def _begin(part: Part) -> float:
    return part.weight if part.weight_from is None else part.weight_from


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts of one kind as one part."""
    found: dict[Part, Part] = {}
    for part in parts:
        kind = dataclasses.replace(part, weight=0.0, weight_from=None)
        if (one := found.get(kind)) is not None:
            begin, end = _begin(one) + _begin(part), one.weight + part.weight
            part = dataclasses.replace(part, weight=end, weight_from=None if math.isclose(begin, end) else begin)
        found[kind] = part
    return tuple(found.values())


def _check(stages: Sequence[Stage], ar_share: float) -> None:
    """Raise `UserError` for a value that no length makes right."""
    if not stages:
        raise UserError("curriculum is empty; give at least one stage")
    if not 0 <= ar_share < 1:
        raise UserError(f"ar-share is {ar_share}; it must be at least 0 and below 1")
    for i, stage in enumerate(stages):
        here = f"curriculum.{i}"
        if stage.mixture and stage.order_kind != AR.order_kind:
            raise UserError(f"{here} has a mixture, and {stage.family}_{stage.group_size} of its own too; give one of them")
        rule = stage.plateau or Plateau()
        for name, value, low in [
            ("ramp", stage.ramp, 0),
            ("batch", stage.batch, 1),
            ("lr-factor", stage.lr_factor, 0),
            ("plateau.delta", rule.delta, 0),
            ("plateau.evaluations", rule.evaluations, 1),
        ]:
            if value is not None and not value >= low:
                raise UserError(f"{here}.{name} is {value}; it must be at least {low}")
        if stage.changes and not stage.ramp:
            raise UserError(f"{here}.ramp is 0, but weight-from or size-from is given; give the steps of that change")
        for j, part in enumerate(stage.parts):
            _check_part(part, f"{here}.mixture.{j}" if stage.mixture else here)
        for name, weights in [
            ("weight", [part.weight for part in stage.parts]),
            ("weight-from", [_begin(part) for part in stage.parts]),
        ]:
            if not any(weights):
                raise UserError(f"{here}.mixture: {name} is 0 in all parts; at least one must be above 0")


def _check_part(part: Part, where: str) -> None:
    for name, size in (("group-size", part.group_size), ("size-from", part.size_from)):
        if size is not None and not 1 <= size <= 2**30:
            raise UserError(f"{where}.{name} is {size}; it must be at least 1" + (" and at most 2^30" if size > 1 else ""))
    for name, share in (("given", part.given), ("prefix", part.prefix)):
        if not 0 <= share < 1:
            raise UserError(f"{where}.{name} is {share}; it must be at least 0 and below 1")
    for name, weight in (("weight", part.weight), ("weight-from", part.weight_from)):
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{where}.{name} is {weight}; it must be at least 0")
    if part.family in ("infill", "open") and part.prefix:
        raise UserError(
            f"{where}.prefix is {part.prefix}, but {part.family} gives the text on both sides already; leave it out"
        )
    if not 0 <= part.slack <= 2**20:
        raise UserError(f"{where}.slack is {part.slack}; it must be at least 0 and at most 2^20")
    if part.slack != AR.slack and not part.blanks_end:
        raise UserError(f"{where}.slack is {part.slack}, but {part.family} leaves no place empty; leave it out")
