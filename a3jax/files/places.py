"""Where the user says that something lies. Today that is a path of this machine, and nothing else."""

import os
import re
from pathlib import Path

from a3jax.errors import UserError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/|://")
"""Also one that was made a `Path`, which takes a slash from it."""


def local(place: str | os.PathLike[str]) -> Path:
    """The path of a place. Raises `UserError` for a URL such as gs://bucket/run, which would become a folder called `gs:`."""
    if _URL.search(os.fspath(place)):
        raise UserError(f"{place} is a URL, as only texts to prepare or to evaluate on can be; give a path of this machine")
    if "\0" in os.fspath(place):
        raise UserError(f"{place} is no path: it holds a zero byte")
    return Path(place)
