"""a3jax train: run an experiment, or go on with it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from a3jax.commands.commandline import Json
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config
from a3jax.devices.processes import Processes


@dataclass(frozen=True)
class TrainOptions(Processes):
    """The options of `a3jax train` beside the fields of the experiment."""

    json: Json = False


@dataclass(frozen=True)
class Train:
    """Adapt a model. The same command resumes a run that was stopped."""

    config: Config
    options: TrainOptions

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Train":
        """`EXPERIMENT [--field value ...] [--coordinator HOST:PORT --processes N --process I] [--json]`."""
        return cls(*parse_experiment(TrainOptions, args, prog, _TRAIN_HELP))

    def run(self) -> dict[str, Any]:  # noqa: D102
        import jax

        from a3jax.train.loop import train

        summary = train(self.config, self.options)
        return dataclasses.asdict(summary) if jax.process_index() == 0 else {"stopped_by": summary.stopped_by}


_TRAIN_HELP = """usage: a3jax train EXPERIMENT [--field value ...] [--json]
       a3jax train EXPERIMENT --coordinator HOST:PORT --processes N --process I [--field value ...] [--json]

Adapt a model. EXPERIMENT is a Python file with a function `experiment()` that returns a Config, or the name of one in
experiments/. Any field can be set by its dotted name. The same command resumes a run that was stopped.

    a3jax train tiny

    a3jax train smollm2_python --optimizer.peak-lr 1e-3 --curriculum.0.steps 20

The fields of an experiment:  a3jax train EXPERIMENT --help"""
