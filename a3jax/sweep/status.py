"""How far every trial is, from the folder alone: nothing else is remembered between two calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from a3jax.checkpoint.folder import saved_steps
from a3jax.evaluate.results import WIDTH
from a3jax.outside_text import show
from a3jax.sweep.halving import dropped
from a3jax.sweep.trials import FAILED, LOG, RUNS, Sweep, reached
from a3jax.terminal import Terminal
from a3jax.train.metrics import last_evaluation
from a3jax.train.run import is_training

State = Literal["waiting", "training", "stopped", "done", "dropped", "failed"]
LAST_LINES = 5
"""Of a failed run's log."""


@dataclass(frozen=True)
class Status:
    """One trial."""

    name: str
    state: State
    """`stopped`: it goes on from its last checkpoint; `dropped`: others were better."""
    step: int
    """Saved last."""
    steps: int
    nll: dict[str, float]
    """Held-out, by order, at the last evaluation."""
    log: str
    """How the log of a failed run ends."""


def status(folder: Path, sweep: Sweep) -> list[Status]:
    """Every trial, in the order of the sweep."""
    gone = dropped(folder, sweep)
    found = []
    for trial in sweep.trials:
        failed = (folder / FAILED / trial.name).is_dir()
        run = folder / (FAILED if failed else RUNS) / trial.name
        step = max(saved_steps(run), default=0)
        state: State = "stopped" if run.is_dir() else "waiting"
        if failed:
            state = "failed"
        elif is_training(run):
            state = "training"
        elif reached(run) >= trial.config.steps:
            state = "done"
        elif trial.name in gone:
            state = "dropped"
        log = last_lines(run / LOG) if failed else ""
        found.append(Status(trial.name, state, step, trial.config.steps, last_evaluation(run).nll, log))
    return found


def last_lines(log: Path) -> str:
    """How a log ends; empty without one."""
    if not log.is_file():
        return ""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])


def print_status(found: list[Status]) -> None:
    """A line for every trial, and then the ends of failed runs' logs."""
    console = Terminal(width=WIDTH)
    orders = list(dict.fromkeys(order for one in found for order in one.nll))
    table = Table("trial", "state", "step", *orders, box=None, header_style="bold")
    for column in table.columns:
        column.no_wrap = True
    for one in found:
        nll = (f"{one.nll[order]:.3f}" if order in one.nll else "" for order in orders)
        table.add_row(one.name, one.state, f"{one.step:,} of {one.steps:,}", *nll)
    console.print(table)
    print_failed(found)


def print_failed(found: Iterable[Status]) -> None:
    """The names of failed runs, and how their logs end."""
    for one in found:
        if one.state == "failed":
            show(f"\n{one.name} failed:\n{one.log}")
