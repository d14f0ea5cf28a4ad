"""A sweep as it stands: its runs, its settings, and what failed."""

from dataclasses import dataclass
from pathlib import Path

from a3jax.sweep.curves import Curve, read_curves
from a3jax.sweep.front import Setting, judge
from a3jax.sweep.status import Status, status
from a3jax.sweep.trials import Sweep


@dataclass(frozen=True)
class Report:
    """All runs and settings, in the order of the sweep."""

    order: str
    """The one that stands for any order."""
    settings: tuple[Setting, ...]
    curves: tuple[Curve, ...]
    failed: tuple[Status, ...]

    @property
    def best_first(self) -> list[Setting]:
        """The settings by what they have gained, those that are done before the others."""
        return sorted(self.settings, key=lambda one: (not one.done, -one.gained))


def compare(folder: Path, sweep: Sweep, order: str) -> Report:
    """Read all runs in `folder`."""
    found = status(folder, sweep)
    curves = read_curves(folder, sweep, found, order)
    return Report(order, judge(curves), curves, tuple(one for one in found if one.state == "failed"))
