"""Folders that are complete or absent: nothing half-written under their name, nothing overwritten."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from a3jax.errors import UserError
from a3jax.outside_text import say
from a3jax.places import local

_MADE_FROM = ".made_from"


@contextlib.contextmanager
def resumable(
    out: Path, made_from: dict[str, Any], worth_keeping: Callable[[Path], bool] = lambda partial: False
) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end. Stopped on the way, it stays as `OUT.partial` to go on from.

    `made_from` is all that the contents follow from, as JSON values; a partial folder made from anything else is begun
    anew. After an error it stays too if it is `worth_keeping`. Raises `UserError` if `out` exists, is being written by
    another process, or outgrows the disk.
    """
    check_new(out)
    partial = out.with_name(f"{out.name}.partial")
    with _made_from(partial, made_from):
        try:
            yield partial
            (partial / _MADE_FROM).unlink()
            partial.rename(out)
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped; the same command goes on from {partial}")
            raise
        except BaseException as error:
            if is_full_disk(error):
                raise UserError(
                    f"{out} could not be written: the disk is full; make room and run it again: it goes on from {partial}"
                ) from None
            if worth_keeping(partial):
                if isinstance(error, UserError):
                    raise UserError(f"{error}; the same command goes on from {partial}") from None
                raise
            remove(partial)
            raise


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A file to write, renamed to `out` at the end and removed on any error. Raises as `complete_or_nothing`."""
    check_new(out)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.rename(out)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if is_full_disk(error):
            raise UserError(f"{out} could not be written: the disk is full; make room and run it again") from None
        raise


def write_whole(file: Path, text: str) -> None:
    """Write a small file, whole at any moment, whoever else writes the same. Raises `UserError` if it cannot be written."""
    new = file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        new.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise UserError(f"{file} cannot be written: {error.strerror}; make room or choose another place") from None


def hold(file: IO, written: Path) -> None:
    """Lock an open file as long as this process has it. Raises `UserError` if another process writes what is `written`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{written} is being written by another process; wait for it") from None


@contextlib.contextmanager
def _made_from(partial: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or find it as it was left; hold it for this process."""
    file = partial / _MADE_FROM
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = file.open("a+")
    except OSError as error:
        raise UserError(f"{partial} cannot be made: {error.strerror}; choose another place") from None
    with lock:
        hold(lock, partial)
        content = json.dumps(made_from)
        lock.seek(0)
        if lock.read() != content:
            for path in partial.iterdir():
                if path.is_dir():
                    remove(path)
                elif path != file:
                    path.unlink()
            lock.truncate(0)
            lock.write(content)
            lock.flush()
        yield


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
    local(out)
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
    return _is_one_of(error, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_passing(error: BaseException) -> bool:
    """Whether an error is of memory, rights, or a file system that fails for a while, and tells nothing of a file itself."""
    network = (errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
    machine = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EACCES, errno.EPERM)
    return isinstance(error, MemoryError) or _is_one_of(error, *network, *machine)


def _is_one_of(error: BaseException, *codes: int) -> bool:
    """By its number or, wrapped by a library such as TensorStore, by the system's words for it."""
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)
