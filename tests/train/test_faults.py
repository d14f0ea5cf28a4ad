"""Faults of every kind at any moment: nothing is lost but the work since the last checkpoint."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from compared_runs import parameters
from jax.profiler import ProfileData
from orbax.checkpoint.checkpoint_managers import preservation_policy

from a3jax.checkpoint.folder import saved_steps
from a3jax.config import Config, GuardConfig, ProfileConfig, Stage, TrainConfig
from a3jax.data.pipeline import Batches
from a3jax.errors import UserError
from a3jax.files.strict import from_json, to_json
from a3jax.likelihood.held_out import HeldOut
from a3jax.train import checkpoints, compiled
from a3jax.train.checkpoints import Checkpoints
from a3jax.train.goodput import CAUSES
from a3jax.train.loop import train
from a3jax.train.metrics import read
from a3jax.train.report import Report

ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read(run) if "loss" in row]


def assert_same(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    for x, y in zip(parameters(a), parameters(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_if_nothing_had_happened(experiment):
    def make(run: str) -> Config:
        config = experiment(run, eval_every=20, save_every=2)
        return dataclasses.replace(config, curriculum=(Stage(80, "random", 4, given=0.5),))

    whole, killed = make("whole"), make("killed")
    train(whole)
    file = killed.run_folder.with_suffix(".json")
    file.write_text(to_json(killed))
    script = Path(__file__).with_name("kill_process.py")
    environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, script, file, "20", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reached = json.loads(done.stdout.splitlines()[-1])
    assert len(reached) == 20
    assert any(r["half_written"] for r in reached), "no kill came during a save"
    assert [r["saved"] for r in reached] == sorted(r["saved"] for r in reached), "a saved step was lost"
    assert_same(killed.run_folder, whole.run_folder)


def signal_during(monkeypatch, owner, name: str, call: int, number: int) -> None:
    """Send this process a signal at the start of the `call`th call of a method."""
    original, calls = getattr(owner, name), []

    def method(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "name", "call", "number", "steps"),
    [
        pytest.param(compiled, "compile_step", 1, signal.SIGTERM, 0, marks=pytest.mark.long),
        (compiled, "compile_step", 2, signal.SIGINT, None),  # in the background, while the first stage runs
        (HeldOut, "nll", 1, signal.SIGINT, 0),
        pytest.param(HeldOut, "nll", 2, signal.SIGTERM, 4, marks=pytest.mark.long),
        (Checkpoints, "save", 1, signal.SIGTERM, None),
        (Batches, "__getitem__", 3, signal.SIGINT, None),
    ],
)
def test_a_signal_during(owner, name, call, number, steps, whole_run, experiment, monkeypatch):
    config = experiment("stopped")
    signal_during(monkeypatch, owner, name, call, number)
    summary = train(config)
    assert summary.stopped_by == number
    assert summary.steps < 8
    assert steps is None or summary.steps == steps
    assert saved_steps(config.run_folder)[-1:] == ([summary.steps] if summary.steps else [])
    monkeypatch.undo()
    assert train(config).steps == 8
    assert_same(config.run_folder, whole_run)


def read_only(folder: Path) -> None:
    folder.chmod(0o500)


def writable(folder: Path) -> None:
    folder.chmod(0o700)


def gone(folder: Path) -> None:
    """A file is in its place, which stops root too."""
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")


def back(folder: Path) -> None:
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)


@pytest.mark.parametrize(("close", "reopen"), [(read_only, writable), (gone, back)])
def test_a_folder_that_cannot_be_written_stops_the_run_and_leaves_the_last_checkpoint(
    close, reopen, experiment, until_saved, monkeypatch
):
    if close is read_only and os.geteuid() == 0:
        pytest.skip("root may write into read-only folders")
    config = experiment(save_every=3)
    folder = config.run_folder / "checkpoints"
    original = Report.step

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        if number == 5:
            until_saved(config, 3)
            close(folder)

    monkeypatch.setattr(Report, "step", step)
    with pytest.raises(UserError, match=r"could not be written .*last whole checkpoint is step 3"):
        train(config)
    reopen(folder)
    monkeypatch.undo()
    assert train(config).steps == 8


def test_checkpoints_stay_by_policy(experiment):
    config = experiment("kept", save_every=1, eval_every=1, keep=0, keep_best=2, best_order="ar")
    train(config)
    nll = {row["step"]: row["nll/ar"] for row in read(config.run_folder) if "nll/ar" in row and row["step"]}
    best = sorted(nll, key=lambda step: nll[step])[:2]
    assert saved_steps(config.run_folder) == sorted({8, *best})
    config = experiment("hours", save_every=1, keep=1, keep_hours=1e-9)
    train(config)
    assert saved_steps(config.run_folder) == list(range(1, 9))


def test_one_checkpoint_every_so_many_hours_stays():
    saved = [SimpleNamespace(step=n, metrics=None, time=datetime(2026, 1, 1) + timedelta(hours=n / 2)) for n in range(10)]
    policy = checkpoints.policy(TrainConfig(keep=1, keep_hours=2.0))
    kept = policy.should_preserve(saved, context=preservation_policy.PreservationContext())
    assert [info.step for info, stays in zip(saved, kept, strict=True) if stays] == [0, 4, 8, 9]


def test_an_order_that_is_not_evaluated_cannot_be_the_best(experiment):
    with pytest.raises(UserError, match=r"best_order is 'random_5'; expected one of ar, .* did you mean 'random_"):
        from_json(Config, to_json(experiment(keep_best=1, best_order="random_5")), "here")


def test_steps_are_traced_where_asked_for(experiment):
    config = dataclasses.replace(experiment(), profile=ProfileConfig("3:5"))
    train(config)
    (trace,) = (config.run_folder / "events" / "plugins" / "profile").rglob("*.xplane.pb")
    steps = []
    data = ProfileData.from_file(str(trace))  # holds the events, which are too many to keep
    for plane in data.planes:
        for line in plane.lines:
            steps += [dict(event.stats)["step_num"] for event in line.events if event.name == "train"]
    assert steps == [3, 4], "what viewers take steps by"
    for wrong in ("3", "5:3", "0:2", "a:b"):
        with pytest.raises(UserError, match=r"profile.steps is .* such as 10:13"):
            train(dataclasses.replace(config, profile=ProfileConfig(wrong)))


def test_goodput_tells_where_the_time_went_over_several_processes(experiment, monkeypatch):
    config = experiment("times", save_every=2)
    original = Report.step

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        if number == 6:
            raise KeyboardInterrupt  # as good as a kill: steps 5 and 6 are not saved

    monkeypatch.setattr(Report, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    time.sleep(1)
    began = time.time()
    summary = train(config)
    last = [row for row in read(config.run_folder) if "goodput" in row][-1]
    times = {cause: last.get(f"time/{cause}", 0.0) for cause in CAUSES}
    assert 1 <= times["down"] < 10
    assert times["repeated"] > 0, "step 5 was done twice"
    assert 0 < summary.goodput <= last["goodput"] + 0.5 < 1.5
    content = json.loads((config.run_folder / "time.json").read_text())
    assert sum(content["seconds"].values()) == pytest.approx(content["until"] - content["began"], abs=0.2)
    assert content["until"] >= began


def test_input_that_does_not_come_is_in_the_metrics_and_input_that_does_is_not(experiment, monkeypatch):
    original = Batches.__getitem__

    def slow(self, step):
        time.sleep(0.3)
        return original(self, step)

    monkeypatch.setattr(Batches, "__getitem__", slow)
    config = experiment("slow")
    train(config)
    waits = [row["input_wait"] for row in read(config.run_folder) if "input_wait" in row]
    assert max(waits) > 0.5


@pytest.mark.long
def test_a_guard_that_never_acts_changes_nothing(experiment, monkeypatch):
    """To the bit as the compiler does by default; without its fusion emitters, last bits differ between two programs."""
    monkeypatch.setattr(compiled, "options", lambda _: {"xla_cpu_use_fusion_emitters": True})
    plain = experiment("plain")
    guarded = dataclasses.replace(experiment("guarded"), guard=GuardConfig("skip", spike=50.0))
    for config in (plain, guarded):
        train(config)
    assert_same(guarded.run_folder, plain.run_folder)
