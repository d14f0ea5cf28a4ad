"""Reports: whatever becomes of their files, the run goes on, and what nobody asked to remove stays on disk."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_folders import load_arrays

from a3jax.checkpoint.folder import find
from a3jax.files.strict import to_json
from a3jax.show.describe import describe
from a3jax.train import hosts
from a3jax.train.loop import train
from a3jax.train.metrics import Log, last_evaluation, read


def flip_a_bit(file: Path, seed: int) -> None:
    content = bytearray(file.read_bytes())
    place = random.Random(seed).randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def binary(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(4000))


def deep(file: Path) -> None:
    file.write_text("[" * 100_000 + "\n")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def wrong_kinds(file: Path) -> None:
    file.write_text('{"step": "one"}\n{"step": 1, "seconds": null}\n{"step": 2, "nll/ar": "low"}\n{"step": true}\n7\nnull\n')


def circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


@pytest.fixture
def stopped(experiment, whole_run):
    """A run that is to go on from step 6, and the run that it is to end as."""
    config = experiment("stopped")
    shutil.copytree(whole_run, config.run)
    shutil.rmtree(config.run_folder / "checkpoints" / "8")
    (config.run_folder / "config.json").write_text(to_json(config))
    return config


@pytest.mark.parametrize("damage", [binary, deep, folder, wrong_kinds, circle])
def test_a_run_goes_on_beside_damaged_reports_to_the_same_parameters(damage, stopped, whole_run):
    run = stopped.run_folder
    for name in ("metrics.jsonl", "time.json", "hosts/0.json"):
        damage(run / name)
    shutil.rmtree(run / "events")
    (run / "events").touch()
    assert train(stopped).steps == 8
    parameters = load_arrays(find(whole_run))
    for name, array in load_arrays(find(run)).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, parameters[name])
    assert describe(run)["what"] == "run folder"


def test_a_bit_flipped_anywhere_in_the_metrics_stops_nothing(tmp_path):
    row = {"stage": "random_4", "loss": 1.5, "seconds": 0.25, "epochs/x": 0.1}
    lines = [{"step": step, **row} for step in range(1, 6)] + [{"step": 5, "nll/ar": 2.0, "nll/random_4": 3.0}]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    for seed in range(300):
        (tmp_path / "metrics.jsonl").write_text(whole)
        flip_a_bit(tmp_path / "metrics.jsonl", seed)
        damaged = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
        found = read(tmp_path)
        assert len(lines) - 2 <= len(found) <= len(lines) + 1
        last_evaluation(tmp_path)
        Log(tmp_path, 9_999_999).close()
        assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[: len(damaged) - 1] == damaged[:-1], "all is kept"
        assert read(tmp_path) == found


def test_damaged_lines_are_named_once_and_stay_while_later_ones_are_dropped(tmp_path, capsys):
    lines = [b'{"step": 1}', b'{"step": 2, \xff}', b'{"step": 3}', b"", b'{"step"; 4}', b'{"step": 5}', b'{"step": 6, "lo']
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join(lines))
    log = Log(tmp_path, 3)
    log.write(step=4, loss=1.0)
    log.close()
    assert file.read_bytes().split(b"\n") == [*lines[:5], b'{"step": 4, "loss": 1.0}', b""]
    assert [row["step"] for row in read(tmp_path)] == [1, 3, 4]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{file} is damaged in line 2, 5: passed over, and left as it is" in said


def test_a_report_that_cannot_be_written_is_said_once_and_goes_on_when_it_can(tmp_path, capsys):
    """A folder is in the way, which stops root too."""
    file = tmp_path / "metrics.jsonl"
    log = Log(tmp_path, 0)
    log.write(step=1)
    file.rename(tmp_path / "elsewhere")
    file.mkdir()
    log.write(step=2)
    log.write(step=3)
    file.rmdir()
    (tmp_path / "elsewhere").rename(file)
    log.write(step=4)
    log.close()
    assert [row["step"] for row in read(tmp_path)] == [1, 4]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "metrics.jsonl cannot be written (Is a directory); the run does not need it, and goes on" in said


def test_a_full_disk_under_the_events_ends_no_thread_that_steps_wait_for(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("there is no disk that is always full")
    log = Log(tmp_path, 0)
    (events,) = (tmp_path / "events").iterdir()
    log._events._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    for step in range(100):
        log.write(step=step, loss=1.0)
    log.close()
    assert events.is_file()
    assert len(read(tmp_path)) == 100
    assert "events cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"host": "h", "process": 1, "pid": 2, "signal": "x"}', '{"host": 7}', "[1]", "\x00"])
def test_a_damaged_heartbeat_is_nobodys(content, tmp_path):
    (tmp_path / hosts.FOLDER).mkdir()
    (tmp_path / hosts.FOLDER / "1.json").write_text(content)
    assert hosts.read(tmp_path) == {}
