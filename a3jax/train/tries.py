"""How often a run is started again after what may pass (`a3jax.devices.passing`): not for ever.

    RUN/tries.json                    how many starts failed so, one after the other, since the checkpoint of which step

A start that saved a checkpoint has come on, so it does not count, and neither does one that was told to stop or killed.
Process 0 writes the file when it fails. Every process has read it when the run began, so that all end with one status.
"""

import contextlib
import json
from pathlib import Path

from a3jax.checkpoint.folder import saved_steps
from a3jax.devices.passing import Passing
from a3jax.errors import UserError
from a3jax.files.folders import write_whole
from a3jax.files.outside_json import parse_object

FILE = "tries.json"
TRIES = 3
"""Starts without a new checkpoint after which a run is given up."""
AGAIN = "start the same command again on all hosts: it goes on from the last checkpoint"


class GivenUp(UserError):
    """It did not pass. As for a defect, launchers do not start the command again."""

    status = 1


class Tries:
    """The starts of a run that failed by what may pass; to be made before any process can fail."""

    def __init__(self, run: Path):
        self._run, self.begun_at = run, _newest(run)
        before = _read(run / FILE)
        self._failed = before.get("failed", 0) if before.get("step") == self.begun_at else 0

    @property
    def is_last(self) -> bool:
        """Whether this start, should it fail too without a new checkpoint, is the last one."""
        return self._failed + 1 >= TRIES

    def failed(self, why: str, first: bool) -> UserError:
        """This start has failed: `Passing`, or `GivenUp` if it was the last. `first` says whether this is process 0."""
        try:
            step = _newest(self._run)
        except OSError:  # nobody can see whether it came on, nor note that it did not
            return Passing(f"{why}; {AGAIN}")
        came_on = step > self.begun_at
        if self.is_last and not came_on:
            if first:
                (self._run / FILE).unlink(missing_ok=True)  # whoever starts it by hand has seen to it: it counts anew
            return GivenUp(f"{why}; {given_up(step)}")
        if first:
            with contextlib.suppress(UserError):  # on a disk that is full or gone, each start counts as the first
                write_whole(self._run / FILE, json.dumps({"step": step, "failed": 0 if came_on else self._failed + 1}))
        return Passing(f"{why}; {AGAIN}")


def given_up(step: int) -> str:
    """That the last try has failed, in words."""
    where = f"since that of step {step}" if step else "at all"
    return (
        f"{TRIES} starts have failed one after the other with no new checkpoint ({where}), so it is given up; start the same "
        f"command again once the cause is mended"
    )


def _newest(run: Path) -> int:
    return max(saved_steps(run), default=0)


def _read(file: Path) -> dict[str, int]:
    """What is written there, if it is what we write."""
    try:
        found = parse_object(file.read_bytes(), str(file))
    except (OSError, UserError):
        return {}
    whole = {"step", "failed"} == found.keys() and all(type(n) is int for n in found.values())
    return found if whole else {}
