"""The loop: resuming gives bit for bit what an uninterrupted run gives, and every fault leaves the last checkpoint whole."""

import dataclasses
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from compared_runs import assert_same_run, parameters, stop_at

from a3jax.checkpoint.folder import find
from a3jax.config import Config, MeshConfig
from a3jax.errors import UserError
from a3jax.files.strict import to_json
from a3jax.likelihood.held_out import ORDERS
from a3jax.train.loop import train
from a3jax.train.metrics import Log, read
from a3jax.train.report import Report


def test_a_run_reports_every_step_and_evaluation(uninterrupted):
    rows = read(Path(uninterrupted))
    steps, evaluations = [r for r in rows if "loss" in r], [r for r in rows if "nll/ar" in r]
    assert [r["step"] for r in steps] == list(range(1, 9))
    assert [r["stage"] for r in steps] == ["in_order_1"] * 3 + ["random_4"] * 5
    assert [r["step"] for r in evaluations] == [0, 4, 8]
    assert all(f"nll/{order}" in r for r in evaluations for order in ORDERS)
    assert all(r["tokens_per_second"] > 0 and r["predicted"] > 0 for r in steps)
    assert evaluations[-1]["nll/ar"] < evaluations[0]["nll/ar"]
    record = find(Path(uninterrupted)).record
    assert (record.steps, record.stages) == (8, ("in_order_1", "random_4"))
    assert record.tokens == sum(r["tokens"] for r in steps) < 8 * 4 * 32, "one of its windows is padded"
    assert list((Path(uninterrupted) / "events").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("when", [1, 4, 5])
def test_a_signal_saves_after_the_step_and_the_same_command_goes_on_bit_for_bit(when, uninterrupted, experiment, monkeypatch):
    config = experiment("stopped")
    stop_at(when, monkeypatch)
    summary = train(config)
    assert (summary.steps, summary.stopped_by) == (when, signal.SIGTERM)
    monkeypatch.undo()
    assert train(config).steps == 8
    assert_same_run(summary.run, uninterrupted)


def start_elsewhere(config: Config, devices: int = 1) -> subprocess.Popen:
    """`train(config)` in a process of its own, with as many simulated devices."""
    config.run_folder.parent.mkdir(exist_ok=True)
    file = config.run_folder.with_suffix(".json")
    file.write_text(to_json(config))
    program = (
        "import sys; from pathlib import Path; from a3jax.config import Config; from a3jax.files.strict import read;"
        "from a3jax.train.loop import train;"
        "train(read(Config, Path(sys.argv[1])))"
    )
    # The same compiler options, and its results, as in this process: bits depend on them.
    environment = {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen([sys.executable, "-c", program, str(file)], stderr=subprocess.DEVNULL, env=environment)


@pytest.mark.long
def test_a_run_killed_at_any_moment_ends_with_the_same_parameters(uninterrupted, experiment):
    config = experiment("killed", save_every=1)
    metrics = config.run_folder / "metrics.jsonl"
    for step in (2, 6):
        process = start_elsewhere(config)
        while process.poll() is None and not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    train(config)
    for x, y in zip(parameters(config.run), parameters(uninterrupted), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [r["step"] for r in read(config.run_folder) if "loss" in r] == list(range(1, 9))


@pytest.mark.long
def test_a_run_goes_on_with_the_same_batches_and_orders_on_another_mesh(uninterrupted, experiment, monkeypatch):
    config = experiment("moved")
    stop_at(3, monkeypatch)
    train(config)
    moved = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=1))
    assert start_elsewhere(moved, devices=4).wait() == 0
    losses = [[r["loss"] for r in read(Path(run)) if "loss" in r] for run in (config.run, uninterrupted)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_run_that_is_to_stop_at_a_step_goes_on_as_if_it_had_not(uninterrupted, experiment):
    assert train(experiment("halted", stop_at=5)).steps == 5
    assert train(experiment("halted", stop_at=5)).steps == 5
    assert [row["step"] for row in read(experiment("halted").run_folder) if "nll/ar" in row] == [0, 4, 5]
    summary = train(experiment("halted"))
    assert summary.steps == 8
    for x, y in zip(parameters(summary.run), parameters(uninterrupted), strict=True):
        np.testing.assert_array_equal(x, y)
    rates = [[row["learning_rate"] for row in read(Path(run)) if "loss" in row] for run in (summary.run, uninterrupted)]
    assert rates[0] == rates[1]


def test_the_ends_of_stages_are_evaluated_if_asked_for(experiment):
    config = experiment(eval_stages=True, eval_every=100)
    train(config)
    rows = [row for row in read(config.run_folder) if "nll/ar" in row]
    assert [row["step"] for row in rows] == [0, 3, 8]
    assert all(len(row["nll_by_rank/random_4"]) == len(row["nll_by_visible/ar"]) == 4 for row in rows)


def test_a_finished_run_does_nothing_more(uninterrupted, experiment):
    before = parameters(uninterrupted)
    summary = train(experiment("whole"))
    assert (summary.steps, summary.loss, set(summary.nll)) == (8, None, set(ORDERS))
    for x, y in zip(before, parameters(uninterrupted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(experiment):
    config = experiment()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=1e30, warmup=0))
    with pytest.raises(UserError, match=r"step 2: .*nan"):
        train(config)
    with pytest.raises(UserError, match="no saved step"):
        find(config.run_folder)


@pytest.mark.long
def test_a_full_disk_while_saving_is_one_line_and_leaves_the_checkpoint_before_it(experiment, until_saved, monkeypatch):
    config = experiment(save_every=3)
    original = Report.step
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        if number == 5:  # from now on no file can grow past 4 KiB: writing fails as on a full disk
            until_saved(config, 3)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    monkeypatch.setattr(Report, "step", step)
    try:
        with pytest.raises(UserError, match=r"could not be written .*last whole checkpoint is step 3"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert find(config.run_folder).record.steps == 3
    assert train(config).steps == 8


def test_no_evaluation_or_save_but_the_first_compiles_anything(experiment, caplog):
    """Counted before the evaluation or save of each step: evaluations follow steps 0, 2, 4, 6 and 8, saves 3, 6 and 8."""
    config = experiment(eval_every=2, save_every=3)
    config = dataclasses.replace(config, curriculum=config.curriculum[1:])
    config = dataclasses.replace(config, curriculum=(dataclasses.replace(config.curriculum[0], steps=8),))
    compiled: dict[int, int] = {}
    original = Report.step

    def so_far() -> int:
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        compiled[number] = so_far()

    with pytest.MonkeyPatch.context() as patch, jax.log_compiles(), caplog.at_level(logging.WARNING):
        patch.setattr(Report, "step", step)
        train(config)
    assert compiled[3] == compiled[2] > 0
    assert so_far() == compiled[8] == compiled[4]


def test_metrics_are_read_while_the_step_after_them_is_under_way(experiment, monkeypatch):
    config = experiment(eval_every=100, save_every=100)
    config = dataclasses.replace(config, curriculum=(dataclasses.replace(config.curriculum[1], steps=4),))
    seen, dispatched, written = [], Report.step, Log.write

    def step(self, number, stage, metrics):
        seen.append(f"dispatched {number}")
        dispatched(self, number, stage, metrics)

    def write(self, **values):
        seen.extend([f"read {values['step']}"] if "loss" in values else [])
        written(self, **values)

    monkeypatch.setattr(Report, "step", step)
    monkeypatch.setattr(Log, "write", write)
    train(config)
    late = [word for n in (2, 3, 4) for word in (f"dispatched {n}", f"read {n - 1}")]
    assert seen == ["dispatched 1", *late, "read 4"]


def test_checkpoints_come_by_the_clock_too_and_one_that_is_late_is_told_of(experiment, monkeypatch, capsys):
    config = experiment("clock", save_every=100, save_minutes=1.0, keep=20, eval_every=100)
    now = iter(range(0, 10_000, 25))  # seconds, each time that somebody asks
    monkeypatch.setattr("a3jax.train.pace.time", Mock(monotonic=lambda: next(now)))
    monkeypatch.setattr(ocp.CheckpointManager, "is_saving_in_progress", Mock(side_effect=[False, True, True, *[False] * 9]))
    train(config)
    steps = sorted(int(path.name) for path in (config.run_folder / "checkpoints").glob("[0-9]*"))
    assert len(steps) > 2
    assert steps[-1] == 8
    assert set(steps) < set(range(1, 9))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("so steps wait; set train.save_every or train.save_minutes higher") == 1


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", 1), ("float32", 0)])
def test_a_new_run_in_bfloat16_says_that_cpus_are_slower_in_it(experiment, capsys, dtype, told):
    config = experiment("pace", compute_dtype=dtype, stop_at=1, eval_every=100, save_every=100)
    train(config)
    assert capsys.readouterr().err.count("--train.compute-dtype float32") == told
    train(config)
    assert "--train.compute-dtype" not in capsys.readouterr().err, "it goes on as it was begun"
