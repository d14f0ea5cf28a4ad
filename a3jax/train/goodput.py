"""Where the time of a run goes, over all the processes it took: useful steps, and everything else by cause.

    RUN/time.json

Goodput is useful step time over wall time since the run first began.
"""

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from a3jax.errors import UserError
from a3jax.files.outside_json import parse_object
from a3jax.files.strict import build

FILE = "time.json"
USEFUL = "training"
CAUSES = (USEFUL, "starting", "compiling", "input", "evaluating", "saving", "repeated", "down")
"""`input`: the host waited for the next batch; `repeated`: steps that were done and lost; `down`: no process was running."""


@dataclass(frozen=True)
class _Times:
    """What the file holds: seconds since the epoch, and by cause."""

    began: float
    until: float
    seconds: dict[str, float]


class Goodput:
    """Seconds by cause. `repeated` are the seconds of steps after the checkpoint that the run goes on from."""

    def __init__(self, run: Path, repeated: float, started: float):
        """`started`: when this process began, by `time.perf_counter`."""
        self._file = run / FILE
        now = time.time() - (time.perf_counter() - started)
        before = _read(run) or _Times(now, now, {})
        self._began = before.began
        self._seconds = {cause: before.seconds.get(cause, 0.0) for cause in CAUSES}
        self._seconds["down"] += max(0.0, now - before.until)
        repeated = min(repeated, self._seconds[USEFUL])
        self._seconds[USEFUL] -= repeated
        self._seconds["repeated"] += repeated
        self._clock = started
        self._saved = 0.0

    def spent(self, cause: str) -> None:
        """All time since the last call went into `cause`."""
        now = time.perf_counter()
        self._seconds[cause] += now - self._clock
        self._clock = now

    def spent_of(self, cause: str, other: str, seconds: float) -> None:
        """The same, but for `seconds` of it, which went into another."""
        self.spent(cause)
        self._seconds[cause] -= seconds
        self._seconds[other] += seconds

    def lost(self, seconds: float) -> None:
        """So much of the training so far will be done again."""
        self._seconds[USEFUL] -= seconds
        self._seconds["repeated"] += seconds

    def facts(self) -> dict[str, float]:
        """For the metrics: `goodput`, and the seconds of every cause that took any."""
        wall = max(1e-9, time.time() - self._began)
        causes = {f"time/{cause}": seconds for cause, seconds in self._seconds.items() if seconds}
        return {"goodput": self._seconds[USEFUL] / wall, **causes}

    def save(self, at_once: bool = False) -> None:
        """Write the file, at most once a second; the end of a run is spent on saving."""
        if at_once:
            self.spent("saving")
        elif time.monotonic() - self._saved < 1:
            return
        self._saved = time.monotonic()
        new = self._file.with_suffix(".json.new")
        with contextlib.suppress(OSError):  # a full disk is for the metrics and the checkpoint to report
            new.write_text(json.dumps({"began": self._began, "until": time.time(), "seconds": self._seconds}))
            new.replace(self._file)


def shares(run: Path) -> dict[str, float]:
    """The part of a run's time so far that went into each cause, the largest first; empty before the first step."""
    times = _read(run)
    seconds = times.seconds if times else {}
    whole = max(1e-9, sum(seconds.values()))
    return {cause: seconds[cause] / whole for cause in sorted(seconds, key=lambda cause: -seconds[cause])}


def _read(run: Path) -> _Times | None:
    """None if there is no file, or it is cut off or damaged: it only reports, and is begun anew."""
    try:
        times: _Times = build(_Times, parse_object((run / FILE).read_bytes(), FILE), FILE)
    except (OSError, UserError):
        return None
    return times if all(map(math.isfinite, (times.began, times.until, *times.seconds.values()))) else None
