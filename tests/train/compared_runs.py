"""Runs on disk compared, and one that is stopped."""

import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays

from a3jax.checkpoint.folder import find
from a3jax.files.places import place
from a3jax.train.metrics import read
from a3jax.train.report import Report


def parameters(run: str | Path) -> list[np.ndarray]:
    """Of the newest checkpoint of a run."""
    return jax.tree.leaves(load_arrays(find(Path(run))))


def assert_same_run(a: str, b: str) -> None:
    """Bit-equal parameters, and the same losses and evaluations step by step."""
    for x, y in zip(parameters(a), parameters(b), strict=True):
        np.testing.assert_array_equal(x, y)
    timing = ("seconds", "tokens_per_second", "predicted_tokens_per_second", "input_wait", "goodput")
    rows = [
        [{k: v for k, v in row.items() if k not in timing and not k.startswith("time/")} for row in read(place(run))]
        for run in (a, b)
    ]
    assert rows[0] == rows[1]


def stop_at(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a SIGTERM once step `when` is under way."""
    original = Report.step

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        if number == when:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Report, "step", step)
