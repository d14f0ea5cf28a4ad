"""Experiments: Python files with a function `experiment()` that returns a Config.

Such a file may have a function `sweep()` too, which returns the Trials of `a3jax sweep`.
"""

import importlib.metadata
import runpy
import traceback
from pathlib import Path
from typing import TypeVar

from a3jax.config import Config
from a3jax.errors import UserError, first_line
from a3jax.experiment.combine import Trials
from a3jax.files.places import local, place
from a3jax.files.strict import build, flat, nearest, plain, read
from a3jax.outside_text import one_line

T = TypeVar("T")


def load_experiment(name: str) -> Config:
    """The Config that an experiment file returns, or the config.json of a run. Raises `UserError` for a broken one."""
    if name.endswith(".json"):
        config = read(Config, place(name))
    else:
        made = _call(name, "experiment", Config)
        config = build(Config, plain(made), str(_path(name)))  # Python does not check the types of fields; this does
    for field, value in flat(plain(config)):
        if isinstance(value, str) and value != one_line(value):
            raise UserError(f"{name}: {field} is {value!r}; it must be without control characters")
    return config


def load_sweep(name: str) -> Trials:
    """The trials that an experiment file's `sweep()` returns. Raises `UserError` where there are none."""
    return _call(name, "sweep", Trials)


def _path(name: str) -> Path:
    """Where an experiment lies: a file by its path; a name in experiments/, else among those that came with the package."""
    if name.endswith(".py"):
        return local(name)
    here = Path("experiments") / local(f"{name}.py")
    return here if here.is_file() else _installed().get(name, here)


def _installed() -> dict[str, Path]:
    """The experiments of an installed package, by name; none where it runs from a clone."""
    try:
        package = importlib.metadata.distribution("a3jax")
    except importlib.metadata.PackageNotFoundError:
        return {}
    recorded = (file.locate() for file in package.files or () if file.match("a3jax/experiments/*.py"))
    moved = Path(str(package.locate_file("share/a3jax/experiments"))).glob("*.py")  # by pip install --target
    return {path.stem: path for path in (*(Path(str(path)).resolve() for path in recorded), *moved) if path.is_file()}


def _call(name: str, function: str, kind: type[T]) -> T:
    """What a function of an experiment file returns."""
    path = _path(name)
    if not path.is_file():
        known = {*(file.stem for file in Path("experiments").glob("*.py")), *_installed()} - {name}
        raise UserError(f"experiment {path} does not exist{nearest(Path(name).stem, sorted(known))}")
    try:
        content = runpy.run_path(str(path))
        if function not in content:
            raise UserError(f"{path}: there is no function {function}() that returns a {kind.__name__}")
        value = content[function]()
    except (Exception, SystemExit) as error:  # whatever is wrong with a user's file is the user's to mend
        raise UserError(f"{path}: {error}" if isinstance(error, UserError) else _told(error, path)) from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: {function}() returns {type(value).__name__}, not a {kind.__name__}")
    return value


def _told(error: BaseException, path: Path) -> str:
    """What is wrong with an experiment file, with the line that was being run or cannot be read, where that is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    what = first_line(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, what = [error.lineno], error.msg
    where = f"line {lines[-1]}: " if lines and lines[-1] else ""
    return f"{path}: {where}{type(error).__name__}: {what}"
