"""One writer at a time: a file that a process holds, by a lock of the system's on this machine, by a lease in a bucket.

A lease is an object that is made only if it is not there, and that its holder writes anew every few seconds, each time only
if it is still what the holder wrote last. What counts is that it changes, not when: clocks differ. So who finds one waits
to see whether it does; one that stays as it is was left by a process that was killed, and is taken over. A holder that
finds its lease taken ends at once, whatever it does: it must write no more.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from a3jax.errors import UserError
from a3jax.files.bucket import disk_error
from a3jax.files.places import is_local, kvstore
from a3jax.outside_text import say

BEAT_SECONDS = 5.0
"""How often a lease is renewed."""
LOST_SECONDS = 30.0
"""A lease that has not changed for so long is nobody's."""
_TAKEN = 2
"""Exit status of a process that lost its lease."""
_TRIES = 5
"""How often a lease may be gone again before it is taken: of a bucket on s3:// that is not there TensorStore says no more."""


@contextlib.contextmanager
def held(file: Path, written: Path) -> Iterator[None]:
    """Hold `file`, made if need be, for this process.

    Raises `UserError` if another process writes what is `written`, and `OSError` if the file cannot be made.
    """
    if is_local(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lock:
            hold(lock, written)
            yield
        return
    with Lease(file, written):
        yield


def hold(file: IO, written: Path) -> None:
    """Lock an open file as long as this process has it. Raises `UserError` if another process writes what is `written`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(written) from None


def is_held(file: Path) -> bool:
    """Whether a process holds a file."""
    if not is_local(file):
        return _changes(_Object(file)) is not None
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none
        return False
    return False


def is_lease(content: bytes) -> bool:
    """Whether what stands in an object is a lease, held or left behind."""
    return _holder(content) is not None


def _in_use(written: Path) -> UserError:
    return UserError(f"{written} is being written by another process; wait for it")


class Lease:
    """An object that this process holds; `finish` leaves something else in its place."""

    def __init__(self, file: Path, written: Path):
        self._object, self._written = _Object(file), written
        self._name, self._beat = f"{here()}:{uuid.uuid4().hex[:8]}", 0
        self._generation = b""
        self._stop, self._renewing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        for _ in range(_TRIES):
            if (free := _free(self._object)) is None:
                raise _in_use(self._written)
            if self._write(free):
                self._thread.start()
                return self
        raise self._object.cannot_be_made()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        if self._generation:
            with contextlib.suppress(OSError):  # it ends by itself
                self._object.write(None, self._generation)

    def finish(self, content: bytes) -> None:
        """Write what is to stay there. Raises `UserError` if another process has the lease meanwhile."""
        self._end()
        if not self._object.write(content, self._generation) and self._object.read()[0] != content:
            raise _in_use(self._written)
        self._generation = b""

    def _end(self) -> None:
        self._stop.set()
        with self._renewing:
            pass

    def _write(self, expected: bytes) -> bool:
        """Write the next beat, if nobody has written anything since."""
        self._beat += 1
        generation = self._object.write(json.dumps({"holder": self._name, "beat": self._beat}).encode(), expected)
        if not generation:  # what was cut off before its answer came was written all the same
            found, newest = self._object.read()
            if not found or _holder(found) != self._name:
                return False
            generation = newest
        self._generation = generation
        return True

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with self._renewing, contextlib.suppress(OSError):  # tried again at the next beat
                if not self._stop.is_set() and not self._write(self._generation):
                    say(f"{self._written} is being written by another process now, so this one ends")
                    os._exit(_TAKEN)


class _Object:
    """One object, written only if it is what it was."""

    def __init__(self, file: Path):
        self._file = file
        with self._errors():
            import tensorstore as ts  # fsspec has no such writing

            again = {"max_retries": 6}  # a minute, then it is for the holder to try again
            context = ts.Context({"gcs_request_retries": again, "s3_request_retries": again})
            self._store = ts.KvStore.open(kvstore(file.parent), context=context).result()

    def cannot_be_made(self) -> OSError:
        """For an object that is not there and cannot be written either."""
        return disk_error(FileNotFoundError(), self._file, writing=True)

    def read(self) -> tuple[bytes | None, bytes]:
        """What it is, None if it is not there, and its generation."""
        with self._errors():
            found = self._store.read(self._file.name).result()
        return (bytes(found.value) if found.state == "value" else None), found.stamp.generation

    def write(self, content: bytes | None, expected: bytes) -> bytes:
        """Write it, or remove it, if its generation is still the expected one. Its new one, empty if it was another."""
        with self._errors(writing=True):
            return self._store.write(self._file.name, content, if_equal=expected).result().generation

    @contextlib.contextmanager
    def _errors(self, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # of TensorStore, for everything
            raise disk_error(FileNotFoundError() if "NOT_FOUND" in str(error) else error, self._file, writing) from None


def _free(found: _Object) -> bytes | None:
    """The generation of a lease that nobody holds, or of none; None for one that is held, or something else."""
    content, generation = found.read()
    if content is None:
        return generation
    if _holder(content) is None or _changes(found) is not None:
        return None
    return generation


def _changes(found: _Object) -> str | None:
    """Who holds a lease, after as long as it takes to see it; None if nobody does."""
    content, _ = found.read()
    if content is None or (name := _holder(content)) is None:
        return None
    if is_gone(name):
        return None
    until = time.monotonic() + LOST_SECONDS
    told = False
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 5)
        if (now := found.read()[0]) != content:
            return name if now is not None and _holder(now) == name else _changes(found)
        if not told and time.monotonic() > until - LOST_SECONDS + 2 * BEAT_SECONDS:
            say(f"nothing was heard of {name.split(':')[0]}, which wrote there; waiting {LOST_SECONDS:.0f} s for it in all")
            told = True
    return None


def _holder(content: bytes) -> str | None:
    """The name in a lease; None if it is something else."""
    try:
        value: Any = json.loads(content)
        return str(value["holder"])
    except (ValueError, KeyError, TypeError):
        return None


def here() -> str:
    """This process, by a name that no other ever has on any machine."""
    return f"{socket.gethostname()}:{_boot()}:{os.getpid()}:{_began(os.getpid())}"


def is_gone(name: str) -> bool:
    """Whether a process was of this machine, and is no more."""
    host, boot, pid, began, *_ = [*name.split(":"), "", "", "", ""]
    return (host, boot) == (socket.gethostname(), _boot()) and pid.isdigit() and _began(int(pid)) != began


def _boot() -> str:
    """Of this machine and its container, whose process numbers these are."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")[5:-1]
    return ""


def _began(pid: int) -> str:
    """When a process began, by the system's clock; empty if there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""
