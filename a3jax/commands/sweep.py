"""a3jax sweep: many runs of one experiment."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json, parse, subcommand
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config, HeldOutOrder
from a3jax.errors import UserError
from a3jax.experiment.files import load_sweep
from a3jax.outside_text import show

if TYPE_CHECKING:
    from a3jax.experiment.combine import Trials


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `a3jax sweep run` beside the fields of the experiment."""

    out: Path | None = None
    """The sweep's folder; sweeps/NAME if not given."""
    at_once: int = 1
    """How many runs at the same time; each has its share of the GPUs."""
    halving: int | None = None
    """Successive halving: one in so many goes on at every rung."""
    order: HeldOutOrder = "random_4"
    """The order by whose held-out NLL they are chosen."""
    index: int | None = None
    """Run this trial alone, by its number from 0: for an array of jobs."""
    retry: bool = False
    """Run those that failed again, from their last checkpoint."""
    dry_run: bool = False
    """Show the trials, and write nothing."""
    json: Json = False


@dataclass(frozen=True)
class StatusOptions:
    """How far every run of a sweep is.

    a3jax sweep status sweeps/mine
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The sweep's folder."""
    json: Json = False


@dataclass(frozen=True)
class ReportOptions:
    """What the runs of a sweep have learned and forgotten: a table, and FOLDER/report.html with plots.

    a3jax sweep report sweeps/mine --order random_8
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The sweep's folder."""
    order: HeldOutOrder = "random_4"
    """The order that stands for any order."""
    json: Json = False


@dataclass(frozen=True)
class Sweep:
    """Run a sweep, look how far it is, or compare its runs."""

    options: RunOptions | StatusOptions | ReportOptions
    experiment: "tuple[Config, Trials] | None" = None

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Sweep":
        """`run EXPERIMENT [option ...] [--field value ...]`, `status FOLDER` or `report FOLDER`."""
        kinds: dict[str, type[StatusOptions | ReportOptions]] = {"status": StatusOptions, "report": ReportOptions}
        what, words = subcommand(args, ("run", *kinds), prog, _SWEEP_HELP)
        prog = f"{prog} {what}"
        if what == "run":
            config, options = parse_experiment(RunOptions, words, prog, _SWEEP_HELP)
            return cls(options, (config, load_sweep(words[0])))
        return cls(parse(kinds[what], words, prog))

    def run(self) -> dict[str, Any]:  # noqa: D102
        if isinstance(self.options, ReportOptions):
            return _report(self.options)
        if isinstance(self.options, StatusOptions):
            return _status(self.options.folder, self.options.json)
        assert self.experiment is not None
        return _run(self.options, *self.experiment)


def _run(options: RunOptions, config: Config, trials: "Trials") -> dict[str, Any]:
    from a3jax.sweep.trials import Halving, make_sweep

    if options.at_once < 1:
        raise UserError(f"--at-once is {options.at_once}; it must be at least 1")
    if options.halving is not None and options.halving < 2:
        raise UserError(f"--halving is {options.halving}; it must be at least 2: one in two goes on")
    if options.index is not None and options.halving is not None:
        raise UserError("--index and --halving exclude each other: who goes on is known only when all have reached a rung")
    folder = options.out or Path("sweeps") / config.name
    halving = Halving(options.halving, options.order) if options.halving else None
    sweep = make_sweep(config, trials, folder, halving)
    if options.dry_run:
        if options.json:
            return {"trials": [{"name": trial.name, "changes": trial.labels} for trial in sweep.trials]}
        for number, trial in enumerate(sweep.trials):
            show(f"{number:4}  {trial.name}  {trial.config.steps:,} steps")
        return {}

    from a3jax.sweep.schedule import run_one, run_sweep

    if options.index is not None:
        run_one(sweep, folder, options.index, options.retry)
    stopped_by = run_sweep(sweep, folder, options.at_once, options.retry)
    found = _status(folder, options.json)
    complete = all(trial["state"] in ("done", "dropped") for trial in found["trials"])
    return {**found, "complete": complete, "stopped_by": stopped_by}


def _status(folder: Path, json: bool) -> dict[str, Any]:
    from a3jax.sweep.status import print_status, status
    from a3jax.sweep.trials import read_sweep

    found = status(folder, read_sweep(folder))
    if not json:
        print_status(found)
    return {"folder": str(folder), "trials": [dataclasses.asdict(one) for one in found]}


def _report(options: ReportOptions) -> dict[str, Any]:
    from a3jax.sweep.comparison import compare
    from a3jax.sweep.page import print_report, write_page
    from a3jax.sweep.trials import read_sweep

    report = compare(options.folder, read_sweep(options.folder), options.order)
    if not options.json:
        print_report(report)
    page = {"page": str(write_page(report, options.folder))}
    return page | dataclasses.asdict(report) if options.json else page


_SWEEP_HELP = """usage: a3jax sweep run EXPERIMENT [--out FOLDER] [--at-once N] [--halving N [--order ORDER]] [--retry]
                           [--index N] [--dry-run] [--field value ...] [--json]
       a3jax sweep status FOLDER [--json]
       a3jax sweep report FOLDER [--order ORDER] [--json]

Run many variants of an experiment, and compare them. EXPERIMENT is a Python file that has, beside `experiment()`, a function
`sweep()` that returns what varies. The same command goes on with a sweep that was stopped or killed.

run       every trial as a run of its own in FOLDER (sweeps/NAME), so many at once; with --halving one in so many goes on at
          every rung, by its held-out NLL in ORDER; with --retry those that failed go on too; with --index one trial alone,
          for an array of jobs; with --dry-run they are only shown
status    how far each is, and how the logs of failed runs end
report    what was learned and forgotten: a table, and FOLDER/report.html with plots

    a3jax sweep run mine --at-once 2

    a3jax sweep run mine --index $SLURM_ARRAY_TASK_ID

    a3jax sweep report sweeps/mine

The fields of an experiment:  a3jax sweep run EXPERIMENT --help"""
