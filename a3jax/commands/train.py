"""a3jax train: run an experiment, or go on with it."""

import dataclasses
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from a3jax.commands.commandline import Json
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config
from a3jax.devices.processes import Processes
from a3jax.outside_text import say

if TYPE_CHECKING:
    from a3jax.train.loop import Summary


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
        if jax.process_index():
            return {"stopped_by": summary.stopped_by}
        say(_end(self.config, summary))
        return dataclasses.asdict(summary)

    @property
    def beginning(self) -> str:
        """What is about to happen, before anything that takes long."""
        return f"{self.config.name}: {self.config.end:,} steps into {self.config.run_folder}; loading JAX"


def _end(config: Config, summary: "Summary") -> str:
    """How a run ended, and what can be done next."""
    done = f"{summary.steps:,} of {config.steps:,} steps"
    if summary.stopped_by:
        name = signal.Signals(summary.stopped_by).name
        done = f"stopped at {done} ({name}{', Ctrl-C' if name == 'SIGINT' else ''}); the same command goes on"
    elif summary.steps < config.steps:
        done = f"done for now: {done}"
    if not summary.steps:
        return done  # nothing is saved, so there is nothing to try
    asked = "--chat", "What can you do?"
    if config.train.sample or not any(source.chat for source in config.data.sources):
        asked = "--text", config.train.sample or "def area(r): [[8]] * r"
    return f"{done}; try: {shlex.join(['a3jax', 'generate', summary.run, *asked])}"


_TRAIN_HELP = """usage: a3jax train EXPERIMENT [--field value ...] [--json]
       a3jax train EXPERIMENT --coordinator HOST:PORT --processes N --process I [--field value ...] [--json]

Adapt a model. EXPERIMENT is a Python file with a function `experiment()` that returns a Config, or the name of one in
experiments/. Any field can be set by its dotted name. The same command resumes a run that was stopped.

    a3jax train tiny

    a3jax train smollm2_python --run runs/mine --optimizer.peak-lr 1e-3 --curriculum.0.steps 20

The fields of an experiment:  a3jax train EXPERIMENT --help"""
