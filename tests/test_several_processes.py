"""Several real processes on this machine: the run that one process makes, together to the last step, and never alone."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from a3jax.config import Config, MeshConfig
from a3jax.strict import to_json
from a3jax.train.metrics import read

pytestmark = pytest.mark.slow
pytest_plugins = ["train.conftest"]


class Processes:
    """`count` processes of `devices` simulated devices each, all running `a3jax train` on the same experiment."""

    def __init__(self, config: Config, count: int, devices: int):
        self.run = config.run_folder
        self.run.parent.mkdir(parents=True, exist_ok=True)
        experiment = self.run.with_suffix(".py")
        experiment.write_text(
            "from a3jax.config import Config\nfrom a3jax.strict import from_json\n\n\ndef experiment():\n"
            f"    return from_json(Config, {to_json(config)!r}, 'here')\n"
        )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        self.processes, self.logs = [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for i in range(count):
            place = ["--coordinator", address, "--processes", str(count), "--process", str(i)] if count > 1 else []
            log = self.run.with_suffix(f".{count}x{devices}.{i}.log")
            command = [sys.executable, "-m", "a3jax.cli", "train", str(experiment), *place, "--json"]
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
            self.logs.append(log)

    def until_step(self, step: int) -> None:
        while not any(row["step"] >= step and "loss" in row for row in read(self.run)):
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.02)

    def ends(self, timeout: float = 200) -> list[int]:
        return [process.wait(timeout) for process in self.processes]

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read(run) if "loss" in row]


@pytest.fixture
def together(experiment):
    """The experiment for eight devices in a mesh of two axes; a step takes a while, so that signals hit one in the middle."""

    def make(run: str, **changes) -> Config:
        config = experiment(run, eval_every=100, save_every=100)
        config = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=4), data=dataclasses.replace(config.data, batch=8))
        return dataclasses.replace(config, **changes)

    return make


def test_two_processes_of_four_devices_make_the_run_of_one_of_eight_and_of_one_device(together):
    whole = together("whole")
    runs = {
        "two processes": (whole, 2, 4),
        "eight devices": (together("eight"), 1, 8),
        "one device": (together("one", mesh=MeshConfig()), 1, 1),
    }
    found = {}
    for name, (config, count, devices) in runs.items():
        processes = Processes(config, count, devices)
        assert processes.ends() == [0] * count, processes.said()
        found[name] = losses(config.run_folder)
    assert len(found["one device"]) == 8
    np.testing.assert_allclose(found["two processes"], found["one device"], rtol=1e-5)
    np.testing.assert_allclose(found["two processes"], found["eight devices"], rtol=1e-5)
    assert len(list((whole.run_folder / "hosts").glob("*.json"))) == 2

    # A signal to one process ends both after the same step; two devices go on, then one process of eight.
    moved = together("moved")
    processes = Processes(moved, 2, 4)
    processes.until_step(2)
    processes.processes[1].send_signal(signal.SIGTERM)
    assert processes.ends() == [128 + signal.SIGTERM] * 2, processes.said()
    stopped = json.loads(processes.logs[0].read_text().splitlines()[-1])["steps"]
    assert losses(moved.run_folder) == found["two processes"][:stopped]
    processes = Processes(dataclasses.replace(moved, mesh=MeshConfig(fsdp=2)), 1, 2)
    processes.until_step(stopped + 1)
    processes.processes[0].send_signal(signal.SIGINT)
    assert processes.ends() == [128 + signal.SIGINT], processes.said()
    assert Processes(moved, 1, 8).ends() == [0]
    np.testing.assert_allclose(losses(moved.run_folder), found["one device"], rtol=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_is_killed_the_other_says_so_and_ends_within_a_minute(victim, together):
    config = together("killed")
    config = dataclasses.replace(config, curriculum=(dataclasses.replace(config.curriculum[0], steps=100_000),))
    processes = Processes(config, 2, 4)
    processes.until_step(2)
    processes.processes[victim].kill()
    killed = time.monotonic()
    assert processes.processes[1 - victim].wait(60) == 75, processes.said()
    assert time.monotonic() - killed < 60
    said = processes.logs[1 - victim].read_text().splitlines()
    who = "process 0, where all processes meet," if victim == 0 else f"host {socket.gethostname()} (process 1)"
    assert [line for line in said if line.startswith("a3jax: ") and f"{who} was lost" in line], said
