"""Which settings of a sweep are worth having: the Pareto front of what they forget and what they gain.

A setting is what runs have in common that differ in their seed only. It lies on the front if no other forgets less and gains
as much, or gains more and forgets as little, by their means. That is `clear` if it has several seeds and, against every other
setting, forgets less or gains more by over `NOISE` standard errors of the difference. Of a setting with one seed the spread
is not known, and the largest of the others' is taken for it.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from a3jax.sweep.curves import Curve

NOISE = 2.0
"""Standard errors."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only: of those that are done, if any are, the means and standard deviations."""

    name: str
    runs: int
    done: bool
    tokens: int
    flops: float
    forgotten: float
    forgotten_sd: float | None
    gained: float
    gained_sd: float | None
    front: bool = False
    """On the Pareto front of the settings that are done, by their means."""
    clear: bool = False
    """On it beyond the spread of the seeds."""


def judge(curves: Sequence[Curve]) -> tuple[Setting, ...]:
    """The settings of runs that were evaluated, in the order of the sweep."""
    names = dict.fromkeys(curve.setting for curve in curves)
    return _with_front([made for name in names if (made := _setting(name, curves))])


def _setting(name: str, curves: Sequence[Curve]) -> Setting | None:
    """None where no run has been evaluated, but for those that failed."""
    runs = [curve for curve in curves if curve.setting == name and curve.compared]
    done = [curve for curve in runs if curve.state == "done"]
    chosen = done or runs
    if not chosen:
        return None
    forgotten, gained = ([getattr(run, of) for run in chosen] for of in ("forgotten", "gained"))
    last = [run.points[-1] for run in chosen]
    return Setting(
        name, len(chosen), bool(done), max(point.tokens for point in last), max(point.flops for point in last),
        statistics.fmean(forgotten), _spread(forgotten), statistics.fmean(gained), _spread(gained),
    )  # fmt: skip


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _with_front(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    def better(a: Setting, b: Setting) -> bool:
        ours, others = (-a.forgotten, a.gained), (-b.forgotten, b.gained)
        return a.done and ours != others and all(x >= y for x, y in zip(ours, others))

    done = [one for one in settings if one.done]

    def judged(one: Setting) -> Setting:
        front = one.done and not any(better(other, one) for other in done)
        clear = front and one.runs > 1 and all(_stands_out(one, other, done) for other in done if other is not one)
        return dataclasses.replace(one, front=front, clear=clear)

    return tuple(judged(one) for one in settings)


def _stands_out(one: Setting, other: Setting, all_of_them: Sequence[Setting]) -> bool:
    """Whether one forgets less or gains more than the other by more than noise."""

    def error(name: str) -> float:
        spreads = {setting.name: getattr(setting, f"{name}_sd") for setting in all_of_them}
        largest = max(spread for spread in spreads.values() if spread is not None)
        variances = ((largest if (spread := spreads[x.name]) is None else spread) ** 2 / x.runs for x in (one, other))
        return math.sqrt(sum(variances))

    less, more = other.forgotten - one.forgotten, one.gained - other.gained
    return less > NOISE * error("forgotten") or more > NOISE * error("gained")
