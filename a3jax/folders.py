"""Folders that are complete or absent: nothing half-written, nothing overwritten."""

import contextlib
import errno
import os
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
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full_disk(error):
            raise UserError(
                f"{out} could not be written: the disk is full; make room and run the same command again"
            ) from None
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error comes from a disk, a quota or a file size limit that is used up, however a library wraps it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def refuse_existing(out: Path) -> None:
    """Raise `UserError` if `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name")
