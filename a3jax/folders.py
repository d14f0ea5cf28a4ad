"""Folders that are complete or absent: nothing half-written, nothing overwritten."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from a3jax.errors import UserError


@contextlib.contextmanager
def complete_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end and removed on any error.

    Raises `UserError` if `out` exists, cannot be made, or outgrows the disk.
    """
    check_new(out)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; choose another place") from None
    try:
        yield partial
        partial.rename(out)
    except BaseException as error:
        remove(partial)
        if is_full_disk(error):
            raise UserError(f"{out} could not be written: the disk is full; make room and run it again") from None
        raise


def check_new(out: Path) -> None:
    """Raise `UserError` if `out` exists or clearly cannot be made: better before the work than after it."""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{out} cannot be made: {above} is not a folder; choose another place")
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name")
    if not os.access(above, os.W_OK):
        raise UserError(f"{out} cannot be made: {above} is not writable; choose another place")


def remove(folder: Path) -> None:
    """Remove a folder, and again while threads of a failed write still put it back: until it is gone for half a second."""
    gone = 0
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        gone = 0 if folder.exists() else gone + 1
        if gone == 10:
            return


def is_full_disk(error: BaseException) -> bool:
    """Whether an error comes from a disk, a quota or a file size limit that is used up, however a library wraps it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)
