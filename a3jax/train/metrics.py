"""What a run reports: one JSON object a line in `metrics.jsonl`, and the same numbers as TensorBoard events."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from a3jax.errors import UserError

# tensorboardX imports PyTorch where it is installed, for tensors that are never written here: seconds of every start.
if hide := "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment]
from tensorboardX import SummaryWriter

if hide:
    del sys.modules["torch"]

METRICS, EVENTS = "metrics.jsonl", "events"


class Log:
    """Appends to a run's metrics. A resumed run drops what was logged after the step that it goes on from."""

    def __init__(self, run: Path, step: int):
        path = run / METRICS
        lines = [(line, json.loads(line)) for line in _lines(path)]
        kept = [line for line, values in lines if values["step"] <= step]
        self.dropped_seconds = sum(values.get("seconds", 0.0) for _, values in lines if values["step"] > step)
        """How long the steps took that will be done again."""
        new = path.with_suffix(".jsonl.new")
        new.write_text("".join(kept))
        new.replace(path)  # whole at any moment
        self._file = path.open("a")
        self._events = SummaryWriter(str(run / EVENTS), purge_step=step + 1 if step else None)

    def write(self, **values: Any) -> None:
        """Record values of one step. Raises `UserError` if the file cannot be written.

        `step` must be among them, numbers are drawn, the rest is written only.
        """
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name} could not be written ({error.strerror}); make room and run it again"
            ) from None
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush and close the files."""
        with contextlib.suppress(OSError):  # told when it was written
            self._file.close()
        self._events.close()


def read(run: Path) -> list[dict[str, Any]]:
    """All metrics of a run, oldest first."""
    return [json.loads(line) for line in _lines(run / METRICS)]


def last_nll(run: Path) -> dict[str, float]:
    """Held-out NLL by order at the newest evaluation; empty if there was none."""
    for line in reversed(read(run)):
        nll = {name.removeprefix("nll/"): value for name, value in line.items() if name.startswith("nll/")}
        if nll:
            return nll
    return {}


def _lines(path: Path) -> list[str]:
    """Whole lines; one cut off by a kill is dropped."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
