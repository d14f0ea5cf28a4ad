"""The hosts of a run, as they see each other: how far each is, who holds the others up, and who was lost.

    RUN/hosts/PROCESS.json            what process 0 has heard of each, for people: twice a minute, and in the end

Hosts hear of each other by other ways (`a3jax.devices.liveness`), and nothing reads these files while the run goes on.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from a3jax.devices import liveness
from a3jax.devices.board import Board
from a3jax.devices.liveness import Liveness
from a3jax.errors import UserError
from a3jax.files.folders import write_whole
from a3jax.files.outside_json import parse_object
from a3jax.files.strict import build
from a3jax.train.tries import Tries

FOLDER = "hosts"
WRITE_SECONDS = 30.0
SLOW = 2.0
"""A host that needs so many times what the others do for its own part of a step holds them up."""


@dataclass(frozen=True)
class Heartbeat(liveness.Heartbeat):
    """What a process tells of itself and its steps."""

    step: int = 0
    own_seconds: float = 0.0
    """Median time per step that the host itself took: to read its input, and lay it out on its devices."""
    step_seconds: float = 0.0
    """Median of whole steps."""
    histogram: dict[str, int] = dataclasses.field(default_factory=dict)
    """Steps by their `own_seconds`: "0.016" counts those from 0.016 to 0.032 seconds."""

    @property
    def at(self) -> str:  # noqa: D102
        return f" at step {self.step}"


class Hosts(Liveness[Heartbeat]):
    """The processes of one run. See `Liveness`."""

    def __init__(self, run: Path, tries: Tries, caught: Callable[[], int] = lambda: 0, board: Board | None = None):
        """`caught` gives the signal that this process has caught, or 0."""
        super().__init__(Heartbeat.own(), caught, board)
        self._folder, self._tries = run / FOLDER, tries
        self._own: list[float] = []
        self._whole: list[float] = []
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write_on, name="hosts", daemon=True)

    def __enter__(self) -> Self:
        if self.mine.process == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self._folder} cannot be made: {error.strerror}; make room for it") from None
        super().__enter__()
        if self.mine.process == 0:
            self._write()
            self._writer.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self.mine.process == 0:
            self._over.set()
            self._writer.join()
            self._write()

    def step(self, step: int, own_seconds: float, step_seconds: float) -> None:
        """Note a step."""
        self._own.append(own_seconds)
        self._whole.append(step_seconds)
        power = math.floor(math.log2(max(own_seconds, 1e-4)))
        bucket = f"{2.0**power:.3g}"
        del self._own[:-100], self._whole[:-100]
        self.mine = dataclasses.replace(
            self.mine,
            step=step,
            own_seconds=statistics.median(self._own),
            step_seconds=statistics.median(self._whole),
            histogram={**self.mine.histogram, bucket: self.mine.histogram.get(bucket, 0) + 1},
        )

    @property
    def straggler(self) -> str | None:
        """The host that the others wait for, in words; None if there is none. Process 0 knows it."""
        beats = list(self.beats.values())
        if len(beats) < 2:
            return None
        slowest = max(beats, key=lambda beat: beat.own_seconds)
        others = statistics.median(beat.own_seconds for beat in beats if beat is not slowest)
        if slowest.own_seconds > SLOW * others and slowest.own_seconds > 0.1 * slowest.step_seconds:
            return f"{slowest.name} needs {slowest.own_seconds:.2g} s of its own for each step, the others {others:.2g} s"
        return None

    def failure(self, why: str) -> UserError:  # noqa: D102
        return self._tries.failed(why, first=self.mine.process == 0)

    def _write_on(self) -> None:
        """In a thread of its own: however long a disk takes, the heart beats on."""
        while not self._over.wait(WRITE_SECONDS):
            self._write()

    def _write(self) -> None:
        for process, beat in self.beats.items():
            with contextlib.suppress(OSError, UserError):  # a full disk is for the checkpoint to report
                write_whole(self._folder / f"{process}.json", json.dumps(dataclasses.asdict(beat)))


def read(run: Path) -> dict[int, Heartbeat]:
    """What process 0 wrote last of every process of a run, by its number."""
    beats: dict[int, Heartbeat] = {}
    for path in (run / FOLDER).glob("*.json"):
        # Being replaced, of another version, or damaged, which is no reason to stop.
        with contextlib.suppress(OSError, ValueError, UserError):
            beats[int(path.stem)] = build(Heartbeat, parse_object(path.read_bytes(), str(path)), str(path))
    return dict(sorted(beats.items()))
