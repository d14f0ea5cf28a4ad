"""Experiments: Python files with a function `experiment()` that returns a Config.

Such a file may have a function `sweep()` too, which returns the Trials of `a3jax sweep`.
"""

import runpy
from pathlib import Path
from typing import TypeVar

from a3jax.config import Config
from a3jax.errors import UserError
from a3jax.experiment.combine import Trials
from a3jax.files.strict import from_json, nearest, read, to_json

T = TypeVar("T")


def load_experiment(name: str) -> Config:
    """The Config that an experiment file returns, or the config.json of a run. Raises `UserError` for a broken one."""
    if name.endswith(".json"):
        return read(Config, Path(name))
    config = _call(name, "experiment", Config)
    return from_json(Config, to_json(config), str(_path(name)))  # Python does not check the types of fields; this does


def load_sweep(name: str) -> Trials:
    """The trials that an experiment file's `sweep()` returns. Raises `UserError` where there are none."""
    return _call(name, "sweep", Trials)


def _path(name: str) -> Path:
    return Path(name) if name.endswith(".py") else Path("experiments") / f"{name}.py"


def _call(name: str, function: str, kind: type[T]) -> T:
    """What a function of an experiment file returns."""
    path = _path(name)
    if not path.is_file():
        known = [file.stem for file in sorted(Path("experiments").glob("*.py"))]
        raise UserError(f"experiment {path} does not exist{nearest(name, known)}")
    try:
        content = runpy.run_path(str(path))
        if function not in content:
            raise UserError(f"{path}: there is no function {function}() that returns a {kind.__name__}")
        value = content[function]()
    except (Exception, SystemExit) as error:  # whatever is wrong with a user's file is the user's to mend
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: {function}() returns {type(value).__name__}, not a {kind.__name__}")
    return value
