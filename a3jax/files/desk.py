"""Files that grow, wherever their folder lies: where it cannot append, they grow on this machine and are sent there.

They are sent every half minute, when asked, and at the end. What is there is whole at any moment, if a little behind.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from a3jax.files.folders import is_passing
from a3jax.files.holding import here, is_gone
from a3jax.files.places import fetch, is_local, remove, scratch, send

SEND_SECONDS = 30.0
_DESKS = ".desks"


class Desk:
    """`with Desk(run, "metrics.jsonl") as desk:` the files grow in `desk.folder`, and go on from what is there.

    Entering raises `OSError` for files that cannot be fetched. Then `failed` hears of what cannot be sent, which is tried
    again; only at the end, if nobody hears, is it raised.
    """

    def __init__(self, place: Path, *names: str, failed: Callable[[OSError], None] | None = None):
        """`names` of files or folders; `place` may be one file alone, which then is the only one."""
        self._place, self._names, self._failed = place, names, failed
        self.folder = place if is_local(place) else scratch(place) / _DESKS / f"{here()}:{uuid.uuid4().hex[:8]}"
        self._sent: dict[str, tuple[int, int]] = {}
        self._stop, self._sending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._send_on, name="desk", daemon=True)

    def __enter__(self) -> Self:
        if self.folder is not self._place:
            self.folder.mkdir(parents=True)
            for left in self.folder.parent.iterdir():  # by a process that was killed: what it has sent counts
                if is_gone(left.name):
                    remove(left)
            for name in self._names:
                if (self._place / name).is_file():
                    fetch(self._place / name, self.folder / name)
                    self._sent[name] = _state(self.folder / name)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self.folder is not self._place:
            self._thread.join()
            self._send(last=kind is None and self._failed is None)
            remove(self.folder)

    def send(self) -> None:
        """Send what has changed."""
        if self.folder is not self._place:
            self._send()

    def _send_on(self) -> None:
        while not self._stop.wait(SEND_SECONDS):
            self._send()

    def _send(self, last: bool = False) -> None:
        with self._sending:
            for name in self._names:
                found = self.folder / name
                for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
                    if not file.is_file():
                        continue
                    inside = str(file.relative_to(self.folder))
                    try:
                        if self._sent.get(inside) != (state := _state(file)):
                            self._send_one(file, inside)
                            self._sent[inside] = state
                    except OSError as error:
                        if last:
                            raise
                        if self._failed is not None:
                            self._failed(error)
                        if is_passing(error):
                            return  # the others would wait as long for the same

    def _send_one(self, file: Path, inside: str) -> None:
        """As it is now: it may grow meanwhile, by whole lines."""
        copy = file.with_name(f"{file.name}.sending")
        try:
            copy.write_bytes(file.read_bytes())
            send(copy, self._place / inside)
        finally:
            with contextlib.suppress(OSError):
                copy.unlink()


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
