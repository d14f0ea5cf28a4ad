"""Command lines that name an experiment: `EXPERIMENT [option ...] [--field value ...]`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from a3jax.commands.commandline import divide, first, parse
from a3jax.config import Config, check_start, settled
from a3jax.experiment.files import load_experiment

Options = TypeVar("Options")


def parse_experiment(options: type[Options], args: Sequence[str], prog: str, usage: str) -> tuple[Config, Options]:
    """`EXPERIMENT [option ...] [--field value ...]`: the experiment with its fields set, and the dataclass `options`.

    Without an experiment, or for `--help` in its place, prints `usage` and exits. Raises `UserError` for a mistake.
    """
    name, words = first(args, usage)
    known: Any = options
    own, fields = divide(words, [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(known)])
    config = parse(Config, fields, f"{prog} {name}", load_experiment(name), usage)
    check_start(config)
    return settled(config), parse(options, own, prog)
