"""Several real processes on this machine: the run that one process makes, together to the last step, and never alone.

Meshes over two processes are compared in `test_mesh.py`.
"""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays

from a3jax.checkpoint.folder import find, saved_steps
from a3jax.config import Config, MeshConfig
from a3jax.files.strict import to_json
from a3jax.train.loop import train
from a3jax.train.metrics import read

pytestmark = [pytest.mark.slow, pytest.mark.long]
pytest_plugins = ["train.conftest"]


SLOW_READER = """
import time
from a3jax.data import pipeline
pipeline.READ_THREADS = pipeline.READ_AHEAD = 1
read = pipeline.Batches.__getitem__
pipeline.Batches.__getitem__ = lambda self, step: time.sleep(1) or read(self, step)
"""
ENDLESS_COMPILER = """
import pathlib, time
from a3jax.train import compiled
def compile_step(*_):
    pathlib.Path(__file__).with_suffix(".compiling").touch()
    time.sleep(1000)
compiled.compile_step = compile_step
"""


class Processes:
    """`count` processes of `devices` simulated devices each, all running `a3jax train` on the same experiment.

    `code` runs at the start of some of them, by their numbers.
    """

    def __init__(self, config: Config, count: int, devices: int, code: dict[int, str] | None = None):
        self.run = config.run_folder
        self.run.parent.mkdir(parents=True, exist_ok=True)
        self.experiments = [self.run.with_suffix(f".{i}.py") for i in range(count)]
        for i, experiment in enumerate(self.experiments):
            experiment.write_text(
                f"{(code or {}).get(i, '')}\nfrom a3jax.config import Config\nfrom a3jax.files.strict import from_json\n\n\n"
                f"def experiment():\n    return from_json(Config, {to_json(config)!r}, 'here')\n"
            )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        }
        self.processes, self.logs = [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for i in range(count):
            place = ["--coordinator", address, "--processes", str(count), "--process", str(i)] if count > 1 else []
            log = self.run.with_suffix(f".{count}x{devices}.{i}.log")
            command = [sys.executable, "-m", "a3jax.cli", "train", str(self.experiments[i]), *place, "--json"]
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
            self.logs.append(log)

    def until(self, reached: Callable[[], bool], timeout: float = 200) -> None:
        latest = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < latest, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda: any(row["step"] >= step and "loss" in row for row in read(self.run)))

    def ends(self, timeout: float = 200) -> list[int]:
        return [process.wait(timeout) for process in self.processes]

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read(run) if "loss" in row]


@pytest.fixture
def together(experiment):
    """The experiment for eight devices in a mesh of two axes, with twelve steps."""

    def make(run: str, **changes) -> Config:
        config = experiment(run, eval_every=100)
        first, second = config.curriculum
        curriculum = (first, dataclasses.replace(second, steps=9))
        config = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=4), data=dataclasses.replace(config.data, batch=8))
        return dataclasses.replace(config, **{"curriculum": curriculum, **changes})

    return make


def test_two_processes_of_four_devices_make_the_run_of_one_of_eight_and_of_one_device(together):
    one, eight, whole = together("one", mesh=MeshConfig()), together("eight"), together("whole")
    train(one)
    for config, count, devices in [(eight, 1, 8), (whole, 2, 4)]:
        processes = Processes(config, count, devices)
        assert processes.ends() == [0] * count, processes.said()
    expected, run = losses(one.run_folder), whole.run_folder
    assert len(expected) == 12
    found = losses(run)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found, losses(eight.run_folder), rtol=1e-5)
    assert len(list((run / "hosts").glob("*.json"))) == 2

    # What only one of them reads of the newest checkpoint is damaged: both set it aside, and train on from the one before.
    parameters = jax.tree.leaves(load_arrays(find(run)))
    flip_bits_in(run / "checkpoints" / "12" / "params")
    processes = Processes(whole, 2, 4)
    assert processes.ends() == [0, 0], processes.said()
    for log in processes.logs:
        assert re.search(
            r"12 is damaged \(.*\); it is set aside as .*damaged/12, and the one before it is used", log.read_text()
        )
    assert saved_steps(run) == [6, 9, 12]
    assert losses(run) == found
    for x, y in zip(jax.tree.leaves(load_arrays(find(run))), parameters, strict=True):
        np.testing.assert_array_equal(x, y)

    # A signal to one process while both compile ends both, with nothing done.
    moved = together("moved")
    processes = Processes(moved, 2, 4, dict.fromkeys(range(2), ENDLESS_COMPILER))
    processes.until(lambda: all(path.with_suffix(".compiling").exists() for path in processes.experiments))
    processes.processes[1].send_signal(signal.SIGTERM)
    assert processes.ends(60) == [128 + signal.SIGTERM] * 2, processes.said()
    assert not saved_steps(moved.run_folder)

    # Later, it ends both after the same step; two devices go on, then one process of eight.
    processes = Processes(moved, 2, 4, {1: SLOW_READER})
    processes.until_step(2)
    processes.processes[1].send_signal(signal.SIGTERM)
    assert processes.ends() == [128 + signal.SIGTERM] * 2, processes.said()
    stopped = json.loads(processes.logs[0].read_text().splitlines()[-1])["steps"]
    assert losses(moved.run_folder) == found[:stopped]
    processes = Processes(dataclasses.replace(moved, mesh=MeshConfig(fsdp=2)), 1, 2, {0: SLOW_READER})
    processes.until_step(stopped + 1)
    processes.processes[0].send_signal(signal.SIGINT)
    assert processes.ends() == [128 + signal.SIGINT], processes.said()
    assert Processes(moved, 1, 8).ends() == [0]
    np.testing.assert_allclose(losses(moved.run_folder), expected, rtol=1e-5)


def flip_bits_in(folder: Path) -> None:
    """In the middle of the largest file of process 1 in a checkpoint's item."""
    file = max((folder / "ocdbt.process_1").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 3, 2 * len(content) // 3):
        content[place] ^= 255
    file.write_bytes(content)


BROKEN = """
import jax
from concurrent.futures import ThreadPoolExecutor
from a3jax.train.report import Report
step = Report.step
def fail(*_):
    raise ValueError("out of order")
def broken(self, number, *rest):
    step(self, number, *rest)
    if number == 2:  # in a thread, where the mesh of all devices is not set
        one = lambda: jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(fail, x, x))(0.0))
        ThreadPoolExecutor(1).submit(one).result()
Report.step = broken
"""


def is_an_end(line: str) -> bool:
    """Whether it is the command's last word: neither its first, nor progress, of which a slow machine may show some."""
    return line.startswith("a3jax: ") and not line.startswith("a3jax: train: ") and not line.endswith("; loading JAX")


def test_a_runtime_error_in_one_of_two_processes_ends_both_with_75_and_the_third_time_with_1(together):
    """The error is the runtime's own, out of a compiled step of process 1; process 0 hears nothing of it any more."""
    failures = []
    for failed, status in ((0, 75), (2, 1)):  # two runs side by side: what takes time is that nothing is heard
        config = together(f"failed{failed}")
        config.run_folder.mkdir()
        (config.run_folder / "tries.json").write_text(json.dumps({"step": 0, "failed": failed}))
        failures.append((status, Processes(config, 2, 4, {1: BROKEN})))
    for status, pair in failures:
        assert pair.ends() == [status] * 2, pair.said()
        lines = [[line for line in log.read_text().splitlines() if is_an_end(line)] for log in pair.logs]
        assert all(len(said) == 1 for said in lines), lines
        assert f"host {socket.gethostname()} (process 1) was lost at step" in lines[0][0]
        assert lines[1][0].startswith("a3jax: INTERNAL: ")
        for (line,) in lines:
            assert ("start the same command again on all hosts" if status == 75 else "so it is given up") in line
    assert not (failures[-1][1].run / "tries.json").exists()


def test_a_slow_host_is_named_and_when_it_is_killed_the_other_says_so_and_ends_within_a_minute(together):
    """Each of two processes in turn, in two runs side by side."""
    pairs = []
    for victim in range(2):
        config = together(f"killed{victim}")
        config = dataclasses.replace(config, curriculum=(dataclasses.replace(config.curriculum[0], steps=100_000),))
        pairs.append(Processes(config, 2, 4, {victim: SLOW_READER}))
    for victim, pair in enumerate(pairs):
        pair.until(lambda run=pair.run: any("straggler" in row for row in read(run)))
        named = [row["straggler"] for row in read(pair.run) if "straggler" in row]
        slow = f"host {socket.gethostname()} (process {victim}) needs "
        assert all(line.startswith(slow) for line in named), named
    for victim, pair in enumerate(pairs):
        pair.processes[victim].kill()
    killed = time.monotonic()
    for victim, pair in enumerate(pairs):
        assert pair.processes[1 - victim].wait(60) == 75, pair.said()
        assert time.monotonic() - killed < 60
        said = pair.logs[1 - victim].read_text().splitlines()
        what = (
            f"host {socket.gethostname()} (process {victim}){', where all processes meet,' if victim == 0 else ''} was lost"
        )
        assert [line for line in said if line.startswith(f"a3jax: {what}")], said
