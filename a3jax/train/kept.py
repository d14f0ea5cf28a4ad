"""What process 0 writes of a run while it goes on: metrics, in files and where else they are shown, and where time goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from a3jax.config import Config
from a3jax.train.callbacks import Callback
from a3jax.train.goodput import Goodput
from a3jax.train.metrics import Log
from a3jax.train.tracker import Tracker


class Kept:
    """The files grow in `folder`; `callbacks` see what is written. `started`: when all began, by `time.perf_counter`."""

    def __init__(self, config: Config, folder: Path, step: int, started: float, callbacks: Sequence[Callback]):
        """Of a run that goes on from `step`: what was logged after it is dropped."""
        self._folder, self._callbacks = folder, callbacks
        self._log = Log(folder, step)
        self._tracker = Tracker(config, folder)
        self.goodput = Goodput(folder, self._log.dropped_seconds, started)

    def write(self, **values: Any) -> None:
        """Record values of one step, which is among them."""
        self._log.write(**values)
        self._tracker.write(**values)
        for callback in self._callbacks:
            callback.metrics(values)

    def rewind(self, step: int) -> None:
        """Drop what was logged after a step."""
        self._log.close()
        self._log = Log(self._folder, step)
        self.goodput.lost(self._log.dropped_seconds)

    def close(self) -> None:
        """Nothing comes any more."""
        self._log.close()
        self._tracker.close()
        self.goodput.save(at_once=True)
