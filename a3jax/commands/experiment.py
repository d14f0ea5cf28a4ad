"""Command lines that name an experiment: `EXPERIMENT [option ...] [--field value ...]`."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from a3jax.commands.commandline import divide, parse
from a3jax.config import Config, check_start, settled
from a3jax.experiment.files import load_experiment

Options = TypeVar("Options")


def parse_experiment(options: type[Options], args: Sequence[str], prog: str, usage: str) -> tuple[Config, Options]:
    """`EXPERIMENT [option ...] [--field value ...]`: the experiment with its fields set, and the dataclass `options`.

    Without an experiment, or for `--help` in its place, prints `usage` and exits. Raises `UserError` for a mistake.
    """
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        sys.exit(0 if args else 2)
    name, *words = args
    known: Any = options
    own, fields = divide(words, [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(known)])
    config = parse(Config, fields, f"{prog} {name}", load_experiment(name), usage)
    check_start(config)
    return settled(config), parse(options, own, prog)
