"""What is compared: checkpoints to be evaluated, and results of evaluations that are there, each by a name of its own."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from a3jax.errors import UserError
from a3jax.files.places import is_local

RESULTS, REPORT, COMPARISON = "results.json", "report.html", "comparison.json"
"""Of one evaluation, with its page, and of several that are compared, whose page has the same name."""


class Candidate(NamedTuple):
    """One row of a comparison."""

    name: str
    """Fit for a folder too."""
    path: Path
    is_results: bool
    """Whether `path` is a folder of results and not a checkpoint."""


def candidates(paths: Sequence[Path]) -> list[Candidate]:
    """Checkpoints and folders of results, in the order in which they are given.

    A folder of results has `RESULTS` and is no model; a folder of such folders stands for all of them, sorted. A name is
    the end of a path, as much of it as no earlier one has, so that one more changes no name before it. Raises `UserError`
    for what is given twice.
    """
    found: list[Candidate] = []
    taken, seen = {RESULTS, REPORT, COMPARISON}, set()
    for given in paths:
        several = [] if _is_model(given) or _is_results(given) else sorted(filter(_is_results, _inside(given)))
        for path in several or [given]:
            whole = os.path.abspath(path) if is_local(path) else str(path)
            if whole in seen:
                raise UserError(f"{path} is given twice; give each once")
            seen.add(whole)
            parts = Path(whole).parts[1:] or ("root",)
            ends = ("-".join(parts[-count:]) for count in range(1, len(parts) + 1))
            numbered = (f"{parts[-1]}-{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain(ends, numbered) if name not in taken)
            taken.add(name)
            found.append(Candidate(name, path, _is_results(path)))
    return found


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_results(path: Path) -> bool:
    return (path / RESULTS).is_file() and not _is_model(path)


def _is_model(path: Path) -> bool:
    """Whether a folder is of a model or a run, ours or a published one, whatever else lies in it."""
    return any((path / name).is_file() for name in ("model.json", "config.json"))
