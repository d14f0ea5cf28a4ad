"""Successive halving (Jamieson & Talwalkar, arXiv 1502.07943): all trials begin, and at every rung one in eta goes on.

Of n trials, the rungs lie at 1/eta^k, ..., 1/eta, 1 of a trial's steps, k being the largest with eta^k <= n. A trial keeps
the learning rate of its whole run, and goes on from its own checkpoint. Who goes on follows from what the runs logged, so a
sweep that was stopped, or killed, goes on with the same ones. A library of searches would have to be told all that anew.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from a3jax.errors import UserError
from a3jax.sweep.trials import FAILED, RUNS, Halving, Sweep, Trial, reached
from a3jax.train.metrics import read


def stops(sweep: Sweep, trial: Trial) -> list[int]:
    """The steps of a trial's rungs. The last is that of its whole run, the only one without halving."""
    eta, count = sweep.halving.eta if sweep.halving else math.inf, 0
    while eta ** (count + 1) <= len(sweep.trials):
        count += 1
    return [math.ceil(trial.config.steps / eta**rung) for rung in range(count, -1, -1)]


def best(folder: Path, sweep: Sweep, halving: Halving, rung: int, trials: Sequence[Trial]) -> list[Trial] | None:
    """Those of a rung that go on to the next; None while one of them has yet to reach it. A failed one does not go on.

    Raises `UserError` if nothing is held out to judge them by.
    """
    nll = {}
    for trial in trials:
        if (folder / FAILED / trial.name).is_dir():
            continue
        run, stop = folder / RUNS / trial.name, stops(sweep, trial)[rung]
        if reached(run) < stop:
            return None
        nll[trial.name] = _nll(run, stop, halving.order)
    count = len(sweep.trials) // halving.eta ** (rung + 1)
    chosen = sorted(nll, key=lambda name: (nll[name], name))[:count]
    return [trial for trial in trials if trial.name in chosen]


def dropped(folder: Path, sweep: Sweep) -> set[str]:
    """The names of trials that did not go on from a rung that all have reached."""
    going, left = list(sweep.trials), set[str]()
    for rung in range(len(stops(sweep, sweep.trials[0])) - 1):
        if sweep.halving is None or (better := best(folder, sweep, sweep.halving, rung, going)) is None:
            break
        left |= {trial.name for trial in going} - {trial.name for trial in better}
        going = better
    return left


def _nll(run: Path, step: int, order: str) -> float:
    for row in reversed(read(run)):
        if row["step"] <= step and f"nll/{order}" in row:
            return row[f"nll/{order}"]
    raise UserError(f"{run} has no held-out NLL at step {step} to compare trials by; prepare the data with --held-out")
