"""The loop: resuming gives bit for bit what an uninterrupted run gives, and every fault leaves the last checkpoint whole."""

import dataclasses
import errno
import json
import logging
import os
import resource
import shutil
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

from a3jax.checkpoint.folder import find, load_arrays
from a3jax.config import AdaptConfig, Config, MeshConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.files.strict import to_json
from a3jax.likelihood.held_out import ORDERS
from a3jax.train.checkpoints import Checkpoints, Restored
from a3jax.train.loop import train
from a3jax.train.metrics import Log, read
from a3jax.train.report import Report
from a3jax.train.run import only_process
from a3jax.train.state import abstract_state


def parameters(run: str) -> list[np.ndarray]:
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


@pytest.fixture
def uninterrupted(whole_run, experiment) -> str:
    """A copy of a run of eight steps that nothing disturbed."""
    config = experiment("whole")
    shutil.copytree(whole_run, config.run)
    return config.run


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


def test_another_experiment_is_refused_in_the_same_folder(uninterrupted, experiment):
    config = dataclasses.replace(experiment("whole"), seed=1)
    with pytest.raises(UserError, match="seed = 0, not 1"):
        train(config)
    train(experiment("whole", save_every=5))  # what does not change the steps may change


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


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("part", ["params", "optimizer", "record", "data"])
@pytest.mark.parametrize("damage", [halve, flip])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(part, damage, uninterrupted, experiment, capsys):
    config = experiment("damaged")
    shutil.copytree(uninterrupted, config.run)
    saved = config.run_folder / "checkpoints" / "8"
    files = [file for file in (saved / part).rglob("*") if file.is_file() and file.name != "commit_success.txt"]
    damage(max(files, key=lambda file: file.stat().st_size))
    (config.run_folder / "config.json").write_text(to_json(config))
    assert train(config).steps == 8
    assert "checkpoints/8 is damaged" in " ".join(capsys.readouterr().err.split())
    assert (config.run_folder / "checkpoints" / "damaged" / "8").is_dir()
    for x, y in zip(parameters(config.run), parameters(uninterrupted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_damaged(uninterrupted, experiment, monkeypatch):
    config = experiment("stale")
    shutil.copytree(uninterrupted, config.run)
    (config.run_folder / "config.json").write_text(to_json(config))
    stale = OSError(errno.ESTALE, "Stale file handle")
    in_tensorstore = ValueError(f'Error reading local file "d/1": Failed to open: "d/1": {os.strerror(errno.EIO)} [spec]')
    for error in (stale, in_tensorstore, MemoryError()):
        with monkeypatch.context() as broken:
            broken.setattr(ocp.CompositeCheckpointHandler, "restore", Mock(side_effect=error))
            with pytest.raises(UserError, match=r"checkpoints/8 cannot be read now \(.*\); run the same command again"):
                train(config)
    assert not (config.run_folder / "checkpoints" / "damaged").exists()
    assert train(config).steps == 8


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_unasked(uninterrupted, experiment):
    config = experiment("lost")
    shutil.copytree(uninterrupted, config.run)
    (config.run_folder / "config.json").write_text(to_json(config))
    for step in (config.run_folder / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(step / "params")
    for _ in range(2):
        with pytest.raises(UserError, match=r"has no step that can be read; remove .*damaged to begin the run anew"):
            train(config)
    shutil.rmtree(config.run_folder / "checkpoints" / "damaged")
    assert train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1))).steps == 1


@pytest.mark.long
def test_a_bit_flipped_in_any_file_of_a_checkpoint_is_found_or_changes_nothing(uninterrupted, experiment):
    """Some files hold nothing that is needed to go on."""
    config = experiment("whole")
    folder = config.run_folder / "checkpoints"
    abstract = abstract_state(config, config.model, make_mesh(MeshConfig(), jax.devices()[:1]))

    def restored() -> Restored:
        with Checkpoints(config.run_folder, config.train) as checkpoints:
            return checkpoints.restore(abstract, None)

    whole = {8: restored()}
    (folder / "8").rename(folder.parent / "8")
    whole[6] = restored()
    (folder.parent / "8").rename(folder / "8")
    found = set()
    for file in [file.relative_to(folder) for file in (folder / "8").rglob("*") if file.is_file()]:
        flip(folder / file)
        step, *rest = restored()
        assert step in whole, file
        jax.tree.map(np.testing.assert_array_equal, rest, list(whole[step][1:]))
        if step == 6:
            found.add(file.parts[1])
            (folder / "damaged" / "8").rename(folder / "8")
        flip(folder / file)
    assert {"params", "optimizer", "record", "data", "standing", "checksums"} <= found


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"path": "nowhere"}}, "nowhere is not a prepared corpus"),
        ({"data": {"length": 128}}, "data.length 128 is more than the model's context of 64"),
        ({"model": {"starts": False}}, "data/prepared begin with '<|start|>', but documents of .* model begin with no token"),
        ({"model": {"vocab": 257, "end_tokens": ()}}, "token ids up to 257, but the model has 257"),
        ({"model": {"width": 16}, "mesh": {"data": 3}}, "does not cover 1 devices"),
        ({"source": "nowhere", "model": None}, "nowhere does not exist"),
        ({"train": {"accumulate": 3}}, "does not divide data.batch 4"),
        ({"train": {"eval_every": 0}}, "train.eval_every is 0; it must be at least 1"),
        ({"optimizer": {"peak_lr": -1.0}}, "optimizer.peak_lr is -1.0; it must be at least 0"),
        ({"optimizer": {"decay": 2.0}}, "optimizer.decay is 2.0; it must be from 0 to 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(change, message, experiment):
    config = experiment()
    parts = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, **parts))
    assert not config.run_folder.exists()


def test_a_model_given_beside_its_source_must_be_that_of_the_source(uninterrupted, experiment):
    config = dataclasses.replace(experiment("other"), source=uninterrupted, adapt=AdaptConfig(rank=0))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, rope_theta=7.0))
    with pytest.raises(UserError, match=r"model.rope_theta is 7.0, but .* has 10000.0; correct the experiment's model"):
        train(other)
    assert not other.run_folder.exists()
    assert train(config).steps == 8


def test_two_processes_do_not_train_in_one_folder(experiment):
    config = experiment()
    config.run_folder.mkdir()
    with only_process(config.run_folder), pytest.raises(UserError, match="run is being trained by another process"):
        train(config)
    assert train(config).steps == 8


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_second_command_leaves_a_run_that_trains_as_it_is_to_the_last_bit(uninterrupted, experiment):
    """Whether its experiment differs in what is free to change, in its source of data, or in nothing."""
    config = experiment("whole")
    (config.run_folder / "config.json").write_text(to_json(config).replace("\n", "\n\n"))
    program = "import sys, time\nfrom pathlib import Path\nfrom a3jax.train.run import only_process\n"
    program += "with only_process(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program, config.run], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            before = contents(config.run_folder)
            with pytest.raises(UserError, match="whole is being trained by another process; wait for it"):
                train(experiment("whole", log_every=7))
            (config.run_folder.parent / "text.txt").write_text("another text " * 100)
            text = dataclasses.replace(config.data, path=str(config.run_folder.parent / "text.txt"))
            with pytest.raises(UserError, match=r"holds a run with data\.path"):
                train(dataclasses.replace(config, data=text))
            assert contents(config.run_folder) == before
        finally:
            other.kill()


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "params/_METADATA", "checkpoints/1/state", "metrics.jsonl"])
def test_a_folder_that_is_no_runs_is_not_trained_in(name, experiment):
    """Such as a model folder that `--run` names."""
    config = experiment("mine")
    file = config.run_folder / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    before = contents(config.run_folder)
    with pytest.raises(UserError, match=rf"mine is not a run's folder, and {name.partition('/')[0]} in it would be lost"):
        train(config)
    assert contents(config.run_folder) == before


def test_a_step_set_aside_is_not_replaced_by_another_of_its_number(uninterrupted, experiment):
    config = experiment("whole")
    for _ in range(2):
        file = max((config.run_folder / "checkpoints" / "8" / "params").rglob("*"), key=lambda path: path.stat().st_size)
        halve(file)
        assert train(config).steps == 8
    aside = config.run_folder / "checkpoints" / "damaged"
    assert sorted(path.name for path in aside.iterdir()) == ["8", "8-2"]


def test_damaged_figures_of_a_checkpoint_that_is_kept_as_the_best_stop_nothing(experiment):
    config = experiment("best", keep_best=1, best_order="ar", save_every=4, stop_at=4)
    train(config)
    (figures,) = (file for file in (config.run_folder / "checkpoints" / "4" / "metrics").iterdir() if file.name == "metrics")
    flip(figures)
    figures.write_bytes(b"\xff" + figures.read_bytes())
    assert train(experiment("best", keep_best=1, best_order="ar", save_every=4)).steps == 8


def test_metrics_of_a_cut_off_line_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read(tmp_path) == [{"step": 1}]


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
