"""What a run reports: one JSON object a line in `metrics.jsonl`, and the same numbers as TensorBoard events.

It only reports: whatever is wrong with these files, or with the disk under them, is said once, and the run goes on. A line
that is damaged stays where it is, for whoever can read it, and is passed over.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from a3jax.errors import UserError
from a3jax.files.outside_json import parse_object
from a3jax.files.places import place
from a3jax.progress import console

# tensorboardX imports PyTorch and the clients of buckets where they are installed, for what is never asked of it here:
# seconds of every start.
if hidden := [name for name in ("torch", "boto3", "google.cloud.storage") if name not in sys.modules]:
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

for name in hidden:
    del sys.modules[name]

METRICS, EVENTS = "metrics.jsonl", "events"
_BEGIN = b'{"step": '


class Log:
    """Appends to a run's metrics. A resumed run drops what was logged after the step that it goes on from."""

    def __init__(self, run: Path, step: int):
        self._path = run / METRICS
        self._torn = False
        self.dropped_seconds = 0.0
        """How long the steps took that will be done again."""
        with _said_once(self._path):
            self._drop_after(step)
        self._events: EventsWriter | None = None
        with _said_once(run / EVENTS):
            (run / EVENTS).mkdir(exist_ok=True)
            self._events = EventsWriter(str(run / EVENTS / "events"))  # at once, not by a thread that a full disk ends
            if step:
                self._event(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, **values: Any) -> None:
        """Record values of one step. `step` must be among them, numbers are drawn, the rest is written only."""
        with _said_once(self._path):
            line = b"\n" * self._torn + json.dumps(values).encode() + b"\n"
            self._torn = True
            with self._path.open("ab") as file:  # anew each time, so that it goes on when its disk does
                file.write(line)
            self._torn = False
        drawn = {name: value for name, value in values.items() if name != "step" and isinstance(value, int | float)}
        if self._events is not None:
            with _said_once(self._path.with_name(EVENTS)):
                for name, value in drawn.items():
                    self._event(step=values["step"], summary=scalar(name, value))
                self._events.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._events is not None:
            with _said_once(self._path.with_name(EVENTS)):
                self._events.close()

    def _event(self, **content: Any) -> None:
        assert self._events is not None
        self._events.write_event(Event(wall_time=time.time(), **content))

    def _drop_after(self, step: int) -> None:
        lines = _lines(self._path)
        kept = [line for line in lines if not line.torn and (line.values is None or line.values["step"] <= step)]
        self.dropped_seconds = sum(
            line.values.get("seconds", 0.0) for line in lines if line.values is not None and line.values["step"] > step
        )
        if len(kept) < len(lines):
            new = self._path.with_suffix(".jsonl.new")
            new.write_bytes(b"".join(line.text + b"\n" for line in kept))
            new.replace(self._path)  # whole at any moment


def read(run: Path) -> list[dict[str, Any]]:
    """All metrics of a run, oldest first."""
    with _said_once(run / METRICS, "read"):
        return [line.values for line in _lines(run / METRICS) if line.values is not None]
    return []


class Evaluation(NamedTuple):
    """What an evaluation found."""

    step: int | None
    """After which it was made; None if there was none."""
    nll: dict[str, float]
    """Held-out nats per token by order; empty where nothing is held out."""


def last_evaluation(run: Path) -> Evaluation:
    """The newest evaluation of a run."""
    for line in reversed(read(run)):
        nll = {name.removeprefix("nll/"): value for name, value in line.items() if name.startswith("nll/")}
        if nll:
            return Evaluation(line["step"], nll)
    return Evaluation(None, {})


class _Line(NamedTuple):
    text: bytes
    """Without its end."""
    values: dict[str, Any] | None
    """None if it is damaged or torn."""
    torn: bool
    """Whether a kill has cut it off."""


def _lines(path: Path) -> list[_Line]:
    """The lines of a file that need not be there; those that are damaged are named. Raises `OSError` if it cannot be read."""
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines = [_Line(text, _values(text), False) for text in whole]
    if rest:
        lines.append(_Line(rest, None, rest.startswith(_BEGIN) or _BEGIN.startswith(rest)))
    _name_damaged(path, tuple(i for i, line in enumerate(lines, 1) if line.text and line.values is None and not line.torn))
    return lines


def _values(text: bytes) -> dict[str, Any] | None:
    """What a line says, if all of it can be what we wrote."""
    try:
        values = parse_object(text, "")
    except UserError:
        return None
    if type(values.get("step")) is not int or values["step"] < 0:
        return None
    numbers: Iterable[Any] = (value for name, value in values.items() if name == "seconds" or name.startswith("nll/"))
    return values if all(type(number) in (int, float) for number in numbers) else None


@functools.cache
def _name_damaged(path: Path, numbers: tuple[int, ...]) -> None:
    if numbers:
        lines = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        _say(f"{path} is damaged in line {lines}: passed over, and left as it is")


def say_unsent(error: OSError) -> None:
    """That a report could not be sent to the run's folder: once for each."""
    _say_failed(place(error.filename), "sent", str(error.strerror))


@contextlib.contextmanager
def _said_once(path: Path, what: str = "written") -> Iterator[None]:
    """What keeps a report from being written or read is said, and no more."""
    try:
        yield
    except OSError as error:
        _say_failed(path, what, str(error.strerror))


@functools.cache
def _say_failed(path: Path, what: str, why: str) -> None:
    _say(f"{path} cannot be {what} ({why}); the run does not need it, and goes on")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        console.print(f"a3jax: {line}", soft_wrap=True)
