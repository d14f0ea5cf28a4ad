"""`launch/local.sh`: every process is told its place, signals and statuses pass through."""

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from starting import LAUNCH, NAMES, run, start

from a3jax.commands.experiment import parse_experiment
from a3jax.commands.train import TrainOptions
from a3jax.devices.mesh import check_mesh, make_mesh


def local(count: int, program: str, **environment: str) -> tuple[int, list[str], str]:
    begin = "import os, sys\ni = int(os.environ['JAX_PROCESS_ID'])\n"
    return run(LAUNCH / "local.sh", count, sys.executable, "-c", begin + program, **environment)


def test_local_gives_each_process_its_place_and_marks_its_lines():
    show = f"print(*(os.environ.get(name, '-') for name in {NAMES!r}))\nprint('problem', file=sys.stderr)"
    status, said, errors = local(3, show)
    assert (status, errors) == (0, "")
    places = sorted(line for line in said if "problem" not in line)
    address = places[0].split()[1]
    assert address.startswith("127.0.0.1:")
    assert places == [f"{i}: {address} 3 {i} {i} - -" for i in range(3)]
    assert sorted(line for line in said if "problem" in line) == [f"{i}: problem" for i in range(3)]


def test_local_simulates_devices_beside_other_flags():
    status, said, _ = local(
        2, "print(os.environ['JAX_PLATFORMS'], os.environ['XLA_FLAGS'])", DEVICES="4", XLA_FLAGS="--other"
    )
    assert status == 0
    assert sorted(said) == [f"{i}: cpu --other --xla_force_host_platform_device_count=4" for i in range(2)]


@pytest.mark.parametrize(
    ("ends", "status"),
    [([0, 0, 0], 0), ([75, 0, 75], 75), ([75, 1, 2], 1), ([0, 75, 2], 2), ([143, 143, 143], 143), ([75, 75, -9], 137)],
)
def test_local_exits_with_the_first_status_that_is_no_consequence(ends, status):
    assert local(len(ends), f"end = {ends}[i]\nos.kill(os.getpid(), -end) if end < 0 else sys.exit(end)")[0] == status


def test_local_waits_for_all_when_one_process_ends():
    assert local(2, "import time\nif i == 0: sys.exit(2)\ntime.sleep(0.5)\nprint('went on')")[:2] == (2, ["1: went on"])


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the script", "to its group, as a terminal does"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_passes_a_signal_to_each_process_once_and_waits_for_it(number, send):
    program = """import os, signal, sys, time
caught = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: caught.append(number))
print('ready')
until = time.monotonic() + 20
while not caught and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.3)
print(*caught)
sys.exit(40 + caught[0])"""
    process = start(LAUNCH / "local.sh", 2, sys.executable, "-c", program)
    ready = {process.stdout.readline() for _ in range(2)}
    assert ready == {"0: ready\n", "1: ready\n"}
    send(process.pid, number)
    said, _ = process.communicate(timeout=30)
    assert sorted(said.splitlines()) == [f"{i}: {int(number)}" for i in range(2)]
    assert process.returncode == 40 + number  # its own, not that of the wait


@pytest.mark.parametrize("file", ["docs/launch.md", "launch/local.sh"])
def test_what_is_shown_of_local_fits_its_devices(file, monkeypatch):
    monkeypatch.chdir(LAUNCH.parent)
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, **_: SimpleNamespace(shape=dict(zip(axes, sizes))))
    shown = re.findall(r"(?:DEVICES=(\d) )?launch/local\.sh (\d) a3jax train ([-.\w ]+\w)", Path(file).read_text())
    assert len(shown) > 1
    for devices, processes, command in shown:
        config, _ = parse_experiment(TrainOptions, command.split(), "a3jax train", "")
        mesh = make_mesh(config.mesh, [None] * int(devices or 1) * int(processes))
        check_mesh(mesh, config.model, config.data.batch // config.train.accumulate, config.data.length)
