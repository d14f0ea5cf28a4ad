"""Experiments: Python files with a function `experiment()` that returns a Config, and command lines that name one."""

import dataclasses
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from a3jax.commandline import divide, parse
from a3jax.config import Config, check, settled
from a3jax.errors import UserError
from a3jax.strict import from_json, nearest, to_json

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
    own, fields = divide(words, [f"--{field.name}" for field in dataclasses.fields(known)])
    config = parse(Config, fields, f"{prog} {name}", load_experiment(name), usage)
    check(config)
    return settled(config), parse(options, own, prog)


def load_experiment(name: str) -> Config:
    """The Config that an experiment file returns. Raises `UserError` for one that is absent or broken."""
    path = Path(name) if name.endswith(".py") else Path("experiments") / f"{name}.py"
    if not path.is_file():
        known = [file.stem for file in sorted(Path("experiments").glob("*.py"))]
        raise UserError(f"experiment {path} does not exist{nearest(name, known)}")
    try:
        content = runpy.run_path(str(path))
        if "experiment" not in content:
            raise UserError(f"{path}: there is no function experiment() that returns a Config")
        config = content["experiment"]()
    except (Exception, SystemExit) as error:  # whatever is wrong with a user's file is the user's to mend
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: experiment() returns {type(config).__name__}, not a Config")
    return from_json(Config, to_json(config), str(path))  # Python does not check the types of fields; this does
