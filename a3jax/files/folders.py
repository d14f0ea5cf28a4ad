"""Folders that are complete or absent: nothing half-written under their name, nothing overwritten.

On this machine a folder is written beside its place and renamed. For a place in a bucket, which cannot rename, it is
written on this machine (`a3jax.files.places.scratch`) and then sent whole (`a3jax.files.parts`).
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from a3jax.errors import UserError
from a3jax.files import places
from a3jax.files.holding import Lease, hold
from a3jax.files.parts import PARTS, is_begun, send_parts
from a3jax.files.places import is_local, place, scratch, send
from a3jax.outside_text import say

_MADE_FROM = ".made_from"
_OURS = {"written_by": "a3jax"}
"""How `_MADE_FROM` begins, by which a partial folder is known to be ours to empty."""


@contextlib.contextmanager
def resumable(
    out: Path, made_from: dict[str, Any], worth_keeping: Callable[[Path], bool] = lambda partial: False
) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end. Stopped on the way, it stays as `OUT.partial` to go on from.

    `made_from` is all that the contents follow from, as JSON values; a partial folder made from anything else is begun
    anew. After an error it stays too if it is `worth_keeping`. Raises `UserError` if `out` exists, is being written by
    another process, or outgrows the disk, and where `OUT.partial` is a link, or a folder with anything in it that was not
    begun here: that is somebody else's, and stays as it is.
    """
    check_new(out)
    partial = _beside(out, "partial")
    with _reserved(out) as finish, _made_from(partial, made_from):
        try:
            yield partial
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
        finish(partial)
    if is_local(out):
        (out / _MADE_FROM).unlink()  # last, so that the folder is known to be ours at any moment before


def _beside(out: Path, suffix: str) -> Path:
    """Where to write what is to become `out`."""
    at = out if is_local(out) else scratch(out)
    return at.with_name(f"{out.name}.{suffix}")


@contextlib.contextmanager
def _reserved(out: Path) -> Iterator[Callable[[Path], None]]:
    """Nobody else makes `out` meanwhile, as far as its place can tell; gives what makes it of a folder of this machine.

    Raises `UserError` if another process does, or it cannot be written.
    """
    if is_local(out):
        yield lambda folder: _rename(folder, out)
        return
    try:
        with Lease(out / PARTS, out) as lease:
            yield lambda folder: _send_whole(folder, out, lease)
    except OSError as error:
        if error.filename and str(error.filename).startswith(str(out)):
            raise unwritable(out, error) from None
        raise


def _rename(folder: Path, out: Path) -> None:
    check_new(out)  # what came there meanwhile is not replaced
    folder.rename(out)


def _send_whole(folder: Path, out: Path, lease: Lease) -> None:
    """Send the parts, then say what they are, and the folder is there."""
    lease.finish(send_parts(folder, out, _MADE_FROM))
    remove(folder)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A file to write, renamed to `out` at the end and removed on any error. Raises as `complete_or_nothing`."""
    check_new(out)
    partial = _beside(out, f"partial-{os.getpid()}")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
    except OSError as error:
        raise _cannot_be_made(out, error) from None

    def finish() -> None:
        check_new(out)
        if is_local(out):
            partial.rename(out)
            return
        try:
            send(partial, out)
        except OSError as error:
            raise unwritable(out, error) from None
        partial.unlink()

    with _finished(out, finish, lambda: partial.unlink(missing_ok=True)):
        yield partial


def write_whole(file: Path, text: str) -> None:
    """Write a small file, whole at any moment, whoever else writes the same. Raises `UserError` if it cannot be written."""
    new = file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}")
    if not is_local(file):
        try:
            file.write_bytes(text.encode())
        except OSError as error:
            raise unwritable(file, error) from None
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise UserError(f"{file} cannot be written: {error.strerror}; make room or choose another place") from None


def unwritable(path: Path, error: OSError, advice: str = "make room or choose another place") -> Exception:
    """That a file or folder cannot be written, in words; the error itself if it may pass."""
    return error if is_passing(error) else UserError(f"{path} cannot be written: {error.strerror}; {advice}")


def move(folder: Path, to: Path) -> None:
    """Give a folder another name. In a bucket it is copied and then removed, and can be found under both on the way."""
    if is_local(folder):
        to.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(to)
    else:
        places.copy_inside(folder, to)


@contextlib.contextmanager
def _made_from(partial: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or find it as it was left; hold it for this process."""
    content = json.dumps({**_OURS, **made_from})
    with _marked(partial) as mark:
        if mark.read() != content:
            for path in partial.iterdir():
                if path.is_dir() and not path.is_symlink():
                    remove(path)
                elif path.name != _MADE_FROM:
                    path.unlink()
            mark.truncate(0)
            mark.write(content)
            mark.flush()
        yield


@contextlib.contextmanager
def _marked(partial: Path) -> Iterator[IO[str]]:
    """The mark of a folder of ours, made or found and held. A folder of anybody else stays as it is, to the last bit."""
    not_ours = UserError(f"{partial} is in the way, and was not begun by a3jax; move it, or choose another name")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
        if partial.is_symlink() or not partial.is_dir():
            raise not_ours
        inside = set(os.listdir(partial))
        if inside and _MADE_FROM not in inside:
            raise not_ours
        mark = open(partial / _MADE_FROM, "a+", errors="replace", opener=_without_links)  # noqa: SIM115, it is closed below
    except OSError as error:
        raise _cannot_be_made(partial, error) from None
    with mark:
        hold(mark, partial)
        mark.seek(0)
        written = mark.read()
        # One that was killed while it began has written no mark yet, but nothing else either.
        if not written.startswith(json.dumps(_OURS)[:-1]) and (written or inside - {_MADE_FROM}):
            raise not_ours
        mark.seek(0)
        yield mark


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def complete_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end and removed on any error.

    Raises `UserError` if `out` exists, cannot be made, or outgrows the disk.
    """
    check_new(out)
    partial = _beside(out, f"partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise _cannot_be_made(out, error) from None
    with _reserved(out) as finish, _finished(out, lambda: finish(partial), lambda: remove(partial)):
        yield partial


@contextlib.contextmanager
def _finished(out: Path, finish: Callable[[], None], undo: Callable[[], None]) -> Iterator[None]:
    """What is written meanwhile is `out` in the end, or nothing."""
    try:
        yield
        finish()
    except BaseException as error:
        undo()
        if is_full_disk(error):
            raise UserError(f"{out} could not be written: the disk is full; make room and run it again") from None
        raise


def check_new(out: Path) -> None:
    """Raise `UserError` if `out` exists, be it as a link to nothing, or clearly cannot be made.

    To be called before the work, for it is a pity after it.
    """
    if not is_local(out := place(out)):
        _check_new_object(out)
        return
    above = next(parent for parent in out.absolute().parents if os.path.exists(parent))  # False too for what cannot be
    if not above.is_dir():
        raise UserError(f"{out} cannot be made: {above} is not a folder; choose another place")
    try:
        os.lstat(out)
    except FileNotFoundError:
        pass
    except OSError as error:  # such as a name that is too long
        raise _cannot_be_made(out, error) from None
    else:
        raise UserError(f"{out} exists already; remove it or choose another name")
    if not os.access(above, os.W_OK):
        raise UserError(f"{out} cannot be made: {above} is not writable; choose another place")


def _check_new_object(out: Path) -> None:
    """The same in a bucket, where an earlier try may have left parts."""
    try:
        if not out.exists() or is_begun(out):
            return
    except OSError as error:
        raise unwritable(out, error) from None
    raise UserError(f"{out} exists already; remove it or choose another name")


def check_ours(file: Path, begin: str) -> None:
    """Raise `UserError` if a file is there and does not begin as ours do: to write it would be to lose somebody's."""
    if os.path.lexists(file) if is_local(file) else file.is_file():
        with file.open("rb") as found:
            if found.read(len(begin.encode())) == begin.encode():
                return
        raise UserError(f"{file} is there and was not written by a3jax; choose another folder")


def _cannot_be_made(out: Path, error: OSError) -> UserError:
    return UserError(f"{out} cannot be made: {error.strerror}; choose another place")


def remove(folder: Path) -> None:
    """Remove a folder, and again while threads of a failed write still put it back: until it is gone for half a second."""
    gone = 0
    for _ in range(100):
        places.remove(folder)
        time.sleep(0.05)
        gone = 0 if folder.exists() else gone + 1
        if gone == 10:
            return


def is_full_disk(error: BaseException) -> bool:
    """Whether an error comes from a disk, a quota or a file size limit that is used up, however a library wraps it."""
    return _is_one_of(error, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_passing(error: BaseException) -> bool:
    """Whether an error is of memory, or a file system that fails for a while, and tells nothing of a file itself."""
    network = (errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
    machine = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY)
    return isinstance(error, MemoryError) or _is_one_of(error, *network, *machine)


def is_forbidden(error: BaseException) -> bool:
    """Whether an error is of rights, which tells nothing of a file itself either."""
    return _is_one_of(error, errno.EACCES, errno.EPERM, errno.EROFS)


def is_wrong_path(error: BaseException) -> bool:
    """Whether an error says that a path cannot be used as it is: too long, a circle of links, no bucket, or forbidden."""
    return _is_one_of(error, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO) or is_forbidden(error)


def _is_one_of(error: BaseException, *codes: int) -> bool:
    """By its number or, wrapped by a library such as TensorStore, by the system's words for it."""
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)
