"""Folders that are complete or absent: nothing half-written, nothing overwritten."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from a3jax.errors import UserError


@contextlib.contextmanager
def complete_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end and removed on any error. `out` must not exist yet."""
    refuse_existing(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(out: Path) -> None:
    """Raise `UserError` if `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name")
