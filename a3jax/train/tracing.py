"""Traces of a few steps, for TensorBoard's profile tab or XProf."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from a3jax.config import Config
from a3jax.errors import first_line
from a3jax.progress import console
from a3jax.train.metrics import EVENTS


class Tracing:
    """Records the steps of `profile.steps` into a folder's events, from the dispatch of the first to the end of the last."""

    def __init__(self, config: Config, folder: Path):
        self._steps, self._folder = config.profile.range, folder / EVENTS
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._running:
            self._end()

    @contextlib.contextmanager
    def step(self, step: int, finish: Callable[[], None]) -> Iterator[None]:
        """Around the dispatch of `step`, which viewers find by its number; `finish` waits for the end of all so far."""
        if step in self._steps and not self._running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call, while the next stage is traced too, would fill the trace
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._running and step + 1 not in self._steps:
            finish()
            self._end()

    def _end(self) -> None:
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # it only reports
            line = f"a3jax: the trace could not be written into {self._folder} ({first_line(error)}); the run goes on"
            console.print(line, soft_wrap=True)
