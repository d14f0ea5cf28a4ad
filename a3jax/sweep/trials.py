"""An experiment and its trials, each a whole `Config` with a name and a run folder of its own.

    FOLDER/sweep.json        the experiment, and every trial
           runs/NAME/        run folders of `a3jax train`; in each log.txt, what the run printed
           failed/NAME/      those of runs that failed
           report.html       what `a3jax sweep report` writes
           lock              held while a process runs the sweep

A name says what a trial changes, `optimizer.peak_lr=0.0003,seed=1`: it stays when others are added or their order changes.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3jax.checkpoint.folder import STEPS, saved_steps
from a3jax.config import Config, HeldOutOrder
from a3jax.curriculum.plateau import PlateauState
from a3jax.errors import UserError
from a3jax.experiment.combine import Trials, Value
from a3jax.files.folders import check_ours, write_whole
from a3jax.files.strict import build, flat, nearest, plain, read, to_json

SWEEP, RUNS, FAILED, LOG = "sweep.json", "runs", "failed", "log.txt"
LONGEST_NAME = 200


@dataclass(frozen=True)
class Halving:
    """Successive halving: every trial begins, and the best go on."""

    eta: int
    """One in so many goes on."""
    order: HeldOutOrder
    """By whose held-out NLL."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    labels: dict[str, str]
    """What it changes: labels of values by dotted name."""
    config: Config

    @property
    def setting(self) -> str:
        """The name of all that is changed but the seed."""
        return _name({path: label for path, label in self.labels.items() if path != "seed"})


@dataclass(frozen=True)
class Sweep:
    """What runs in a folder."""

    baseline: Config
    trials: tuple[Trial, ...]
    halving: Halving | None = None


def make_sweep(experiment: Config, trials: Trials, folder: Path, halving: Halving | None = None) -> Sweep:
    """Apply the changes of every trial. Raises `UserError` for a field or value that cannot be, naming the trial.

    A trial that comes twice is run once. All are run to their ends, or to a rung: there is no `train.stop_at`.
    """
    baseline = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, eval_stages=True))
    made: dict[str, Trial] = {}
    for changes in trials.changes:
        labels = {path: changes[path].label for path in sorted(changes)}
        name = _name(labels)
        config = dataclasses.replace(_changed(baseline, changes, name), run=str(folder / RUNS / name))
        if config.train.stop_at is not None:
            raise UserError(
                f"train.stop_at is {config.train.stop_at} in {name}; leave it out, as runs of a sweep have no such end"
            )
        if made.setdefault(name, trial := Trial(name, labels, config)) != trial:
            raise UserError(f"two trials are named {name}; give their values other labels")
    if not made:
        raise UserError("the sweep has no trials; give every field at least one value")
    return Sweep(baseline, tuple(made.values()), halving)


def save_sweep(sweep: Sweep, folder: Path) -> None:
    """Write sweep.json. Raises `UserError` if it cannot be written, or is there and something else."""
    check_ours(folder / SWEEP, to_json(sweep)[: len('{\n  "baseline": ')])
    write_whole(folder / SWEEP, to_json(sweep))


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder. Raises `UserError` if there is none."""
    return read(Sweep, folder / SWEEP)


def reached(run: Path) -> int:
    """The step of its curriculum that a run has saved: what stages that ended early passed over counts as done."""
    step = max(saved_steps(run), default=0)
    standing = run / STEPS / str(step) / "standing" / "metadata"
    return step + (read(PlateauState, standing).skipped if standing.is_file() else 0)


def _name(labels: dict[str, str]) -> str:
    """A file name for changes; one that is too long ends in a digest."""
    whole = ",".join(f"{path}={label}" for path, label in sorted(labels.items())) or "baseline"
    name = re.sub(r"[^\w.,=+-]", "_", whole)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _changed(config: Config, changes: Mapping[str, Value], name: str) -> Config:
    """The experiment with its changes; that of a whole goes before those of its parts."""
    tree = plain(config)
    for path in sorted(changes):
        if path in ("name", "run"):
            raise UserError(f"trial {name}: {path} cannot vary; the sweep names its runs itself")
        _set(tree, path, plain(changes[path].value))
    return build(Config, tree, f"trial {name}")


def _set(tree: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    part = tree
    for key in parents:
        part = _get(part, key)
    if _get(part, last, _ABSENT) is _ABSENT:
        known = [*tree, *(name for name, _ in flat(tree))]
        raise UserError(f"the sweep changes '{path}', which this experiment does not have{nearest(path, known)}")
    part[int(last) if isinstance(part, list) else last] = value


def _get(part: Any, key: str, default: Any = None) -> Any:
    """A field of a dict, or an item of a list by its number."""
    if isinstance(part, list):
        return part[int(key)] if key.isdecimal() and int(key) < len(part) else default
    return part.get(key, default) if isinstance(part, dict) else default


_ABSENT = object()
