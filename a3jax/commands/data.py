"""a3jax data: what an experiment reads of its corpora, and how fast."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from a3jax.commands.commandline import Json, subcommand
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The options of `a3jax data show` beside the fields of the experiment."""

    step: int = 0
    """Of the batch; 0 is the first."""
    windows: int = 2
    """How many of its rows."""
    token: int | None = None
    """A place in the windows; what its query may see is shown."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of `a3jax data bench` beside the fields of the experiment."""

    steps: int | None = None
    """How many to measure; as many as make 8 million tokens if not given."""
    json: Json = False


@dataclass(frozen=True)
class Data:
    """Look at the batches of an experiment, or measure how fast they come."""

    config: Config
    options: ShowOptions | BenchOptions

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Data":
        """`show|bench EXPERIMENT [option ...] [--field value ...]`."""
        kinds: dict[str, type[ShowOptions | BenchOptions]] = {"show": ShowOptions, "bench": BenchOptions}
        what, words = subcommand(args, kinds, prog, _DATA_HELP)
        return cls(*parse_experiment(kinds[what], words, f"{prog} {what}", _DATA_HELP))

    def run(self) -> dict[str, Any]:  # noqa: D102
        options = self.options
        if isinstance(options, ShowOptions):
            from a3jax.show.batches import print_shown, show

            self.config.check_orders()
            shown = show(self.config, options.step, options.windows, options.token)
            if options.json:
                return dataclasses.asdict(shown)
            print_shown(shown)
        else:
            from a3jax.show.throughput import bench, show_bench

            measured = bench(self.config, options.steps)
            if options.json:
                return dataclasses.asdict(measured)
            show_bench(measured)
        return {}


_DATA_HELP = """usage: a3jax data show EXPERIMENT [--step N] [--windows N] [--token N] [--field value ...] [--json]
       a3jax data bench EXPERIMENT [--steps N] [--field value ...] [--json]

show    windows of a batch as training reads them: documents, what is given, groups in their order; with --token the
        place of a token in the windows, and what its query may see
bench   tokens/s from storage to the device, and where the time goes

    a3jax data show tiny --step 30 --token 100

    a3jax data bench tiny --data.length 2048 --data.batch 32"""
