"""The hosts of a run, as they see each other: a heartbeat each, who holds the others up, and who was lost.

    RUN/hosts/PROCESS.json            written anew every few seconds by each process

It needs nothing but the run folder, which all processes share for the checkpoints anyway. What counts is that a file
changes, not when: clocks of hosts differ.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from a3jax.devices.agreement import from_runtime
from a3jax.devices.passing import may_pass
from a3jax.errors import UserError, first_line
from a3jax.files.folders import write_whole
from a3jax.files.outside_json import parse_object
from a3jax.files.strict import build
from a3jax.outside_text import say
from a3jax.train.tries import Tries

FOLDER = "hosts"
BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0
"""Without a new heartbeat for so long, a host counts as lost."""
LOST_AFTER_ERROR = 10.0
"""The same once an exchange between processes has failed."""
SLOW = 2.0
"""A host that needs so many times what the others do for its own part of a step holds them up."""


@dataclass(frozen=True)
class Heartbeat:
    """What a process tells of itself."""

    host: str
    process: int
    pid: int
    beat: int = 0
    step: int = 0
    own_seconds: float = 0.0
    """Median time per step that the host itself took: to read its input, and lay it out on its devices."""
    step_seconds: float = 0.0
    """Median of whole steps."""
    histogram: dict[str, int] = dataclasses.field(default_factory=dict)
    """Steps by their `own_seconds`: "0.016" counts those from 0.016 to 0.032 seconds."""
    signal: int = 0
    """That it has caught and ends for, or 0."""
    ended: bool = False


class Hosts:
    """`with Hosts(run_folder) as hosts:` the heartbeat goes on; `with hosts.watched():` so must that of all others."""

    def __init__(self, run: Path, tries: Tries, caught: Callable[[], int] = lambda: 0):
        """`caught` gives the signal that this process has caught, or 0."""
        self._folder, self._tries, self._caught, self._heard = run / FOLDER, tries, caught, 0
        self._mine = Heartbeat(socket.gethostname(), jax.process_index(), os.getpid())
        self._beat = 0
        self._own: list[float] = []
        self._whole: list[float] = []
        self._stop = threading.Event()
        self._watching = False
        self.straggler: str | None = None
        """The host that the others wait for, in words; None if there is none, or they are not watched."""
        self._seen: dict[int, tuple[int, float, Heartbeat]] = {}
        self._thread = threading.Thread(target=self._beat_and_watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder} cannot be made: {error.strerror}; make room for it") from None
        with contextlib.suppress(OSError, UserError):  # a full disk is for the checkpoint to report
            self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._mine = dataclasses.replace(self._mine, ended=kind is None)  # after an error the others must not wait for it
        with contextlib.suppress(OSError, UserError):
            self._write()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a lost host ends this process too, with the status of `Tries` and a line that names it.

        So does whatever else in the runtime of several processes may pass. To be entered when every process has its
        heartbeat. What this process would still do on its way out waits for the others, so it ends at once; there is
        nothing it could lose.
        """
        self._watching = jax.process_count() > 1
        try:
            yield
        except Exception as error:
            if self._watching and from_runtime(error):
                lost = self.lost(LOST_AFTER_ERROR)
                if lost is not None or may_pass(error):
                    self._end(lost or first_line(error))
            raise
        finally:
            self._watching = False

    @property
    def first(self) -> str:
        """The name of the host of process 0."""
        return self._read().get(0, self._mine).host

    def step(self, step: int, own_seconds: float, step_seconds: float) -> None:
        """Note a step."""
        self._own.append(own_seconds)
        self._whole.append(step_seconds)
        power = math.floor(math.log2(max(own_seconds, 1e-4)))
        bucket = f"{2.0**power:.3g}"
        del self._own[:-100], self._whole[:-100]
        self._mine = dataclasses.replace(  # whole at any moment, for it is written by another thread
            self._mine,
            step=step,
            own_seconds=statistics.median(self._own),
            step_seconds=statistics.median(self._whole),
            histogram={**self._mine.histogram, bucket: self._mine.histogram.get(bucket, 0) + 1},
        )

    def signal(self) -> int:
        """What this process or, as far as it has heard, another one has caught, or 0. A rumour, to be agreed on."""
        return self._caught() or self._heard

    def lost(self, patience: float) -> str | None:
        """Wait up to twice `patience` for a host without a heartbeat; who it is, in words."""
        until = time.monotonic() + 2 * patience
        while time.monotonic() < until:
            if (silent := self._silent(self._read(), patience)) is not None:
                return silent
            time.sleep(0.5)
        return None

    def _beat_and_watch(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat += 1
            with contextlib.suppress(OSError, UserError):  # a full disk is for the checkpoint to report
                self._write()
            if not self._watching:
                continue
            beats = self._read()
            self.straggler = _straggler(list(beats.values()))
            self._heard = max((beat.signal for beat in beats.values()), default=0)
            if (silent := self._silent(beats, LOST_SECONDS)) is not None:
                # The main thread waits inside an exchange that will never end, and cannot be woken.
                self._end(silent)

    def _silent(self, beats: dict[int, Heartbeat], patience: float) -> str | None:
        now = time.monotonic()
        for process, beat in beats.items():
            before = self._seen.get(process)
            if before is None or before[0] != beat.beat:
                self._seen[process] = (beat.beat, now, beat)
            elif process != self._mine.process and not beat.ended and now - before[1] > patience:
                return f"{_name(beat)} was lost at step {beat.step}: nothing was heard of it for {now - before[1]:.0f} s"
        return None

    def _read(self) -> dict[int, Heartbeat]:
        """Of this run's processes; it may have had more of them before."""
        return {process: beat for process, beat in read(self._folder.parent).items() if process < jax.process_count()}

    def _end(self, why: str) -> None:
        failure = self._tries.failed(why, first=self._mine.process == 0)
        say(str(failure))
        os._exit(failure.status)

    def _write(self) -> None:
        path = self._folder / f"{self._mine.process}.json"
        write_whole(path, json.dumps(dataclasses.asdict(self._mine) | {"beat": self._beat, "signal": self._caught()}))


def read(run: Path) -> dict[int, Heartbeat]:
    """The newest heartbeat of every process of a run, by its number."""
    beats: dict[int, Heartbeat] = {}
    for path in (run / FOLDER).glob("*.json"):
        # Being replaced, of another version, or damaged, which is no reason to stop.
        with contextlib.suppress(OSError, ValueError, UserError):
            beats[int(path.stem)] = build(Heartbeat, parse_object(path.read_bytes(), str(path)), str(path))
    return dict(sorted(beats.items()))


def _straggler(beats: list[Heartbeat]) -> str | None:
    if len(beats) < 2:
        return None
    slowest = max(beats, key=lambda beat: beat.own_seconds)
    others = statistics.median(beat.own_seconds for beat in beats if beat is not slowest)
    if slowest.own_seconds > SLOW * others and slowest.own_seconds > 0.1 * slowest.step_seconds:
        return f"{_name(slowest)} needs {slowest.own_seconds:.2g} s of its own for each step, the others {others:.2g} s"
    return None


def _name(beat: Heartbeat) -> str:
    return f"host {beat.host} (process {beat.process})"
