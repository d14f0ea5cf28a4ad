"""How a process learns its place among others, and what a parent makes of how its child ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from a3jax.devices import processes
from a3jax.devices.processes import NotJoined, Processes, connect, is_another, several
from a3jax.errors import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
PLACED = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
JOB = {"JAX_COORDINATOR_ADDRESS": "job-slice-0-0.job:8482", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
GKE = {"TPU_WORKER_HOSTNAMES": "job-slice-0-0.job,job-slice-0-1.job", "TPU_WORKER_ID": "0", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture(autouse=True)
def no_chips(monkeypatch):
    monkeypatch.setattr(processes, "_chips", lambda: False)


@pytest.fixture
def joined(monkeypatch):
    """What `connect` asks of JAX: address, count and index, once for each call."""
    import jax

    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **_: calls.append(place))
    return calls


@pytest.mark.parametrize(
    ("given", "environment", "place"),
    [
        pytest.param(Processes("host:1234", 2, 1), {}, ("host:1234", 2, 1), id="options"),
        pytest.param(Processes(), PLACED, ("host:1234", 2, 1), id="variables"),
        pytest.param(Processes(process=0), PLACED, ("host:1234", 2, 0), id="an option before its variable"),
        pytest.param(Processes("[::1]:80", 2, 1), {}, ("[::1]:80", 2, 1), id="IPv6"),
        pytest.param(Processes(), JOB, ("job-slice-0-0.job:8482", 4, 3), id="a Kubernetes job without TPUs"),
        pytest.param(Processes(), SLURM | PLACED, ("host:1234", 2, 1), id="variables before Slurm"),
        pytest.param(Processes(), SLURM, (None, None, None), id="Slurm"),
        pytest.param(Processes(), SLURM | {"JAX_PLATFORMS": "cpu"}, (None, None, None), id="Slurm on the CPU"),
        pytest.param(Processes("host:1234"), SLURM, ("host:1234", None, None), id="Slurm, its coordinator elsewhere"),
        pytest.param(Processes(), GKE, (None, None, None), id="GKE with TPUs"),
        pytest.param(Processes("host:1234"), GKE, ("host:1234", None, None), id="GKE, its coordinator elsewhere"),
        pytest.param(Processes(), {"MEGASCALE_NUM_SLICES": "2"}, (None, None, None), id="slices of one host"),
    ],
)
def test_a_process_joins_the_others_as_options_variables_or_the_cluster_say(given, environment, place, joined):
    assert several(given, environment)
    connect(given, environment)
    assert joined == [place]


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        pytest.param(Processes(), {}, id="nothing"),
        pytest.param(Processes("host:1234", 1, 0), {}, id="one by options"),
        pytest.param(Processes(), {"JOB_COMPLETION_INDEX": "0"}, id="any Kubernetes job"),
        pytest.param(Processes(), {"TPU_WORKER_HOSTNAMES": "localhost"}, id="a slice of one host"),
        pytest.param(Processes(), GKE | {"JAX_PLATFORMS": "cpu"}, id="the CPU of a TPU host"),
        pytest.param(Processes(), SLURM | {"SLURM_NTASKS": "1"}, id="one task"),
        pytest.param(Processes(), {k: v for k, v in SLURM.items() if "STEP" not in k}, id="a batch script itself"),
        pytest.param(Processes(), {"JAX_COORDINATOR_ADDRESS": ""}, id="an empty variable"),
    ],
)
def test_a_process_alone_waits_for_nobody(given, environment, joined):
    assert not several(given, environment)
    connect(given, environment)
    assert joined == []


@pytest.mark.parametrize(
    ("environment", "another"),
    [
        ({}, False),
        (PLACED, True),
        (PLACED | {"JAX_PROCESS_ID": "0"}, False),
        (JOB, True),
        (SLURM, False),
        (SLURM | {"SLURM_PROCID": "1"}, True),
        (GKE | {"TPU_WORKER_ID": "0"}, False),
        (GKE | {"TPU_WORKER_ID": "3"}, True),
        (GKE | {"TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, True),
        ({"JAX_PROCESS_ID": "1"}, False),
    ],
)
def test_a_command_of_one_process_knows_whether_it_is_another_that_does_it(environment, another):
    assert is_another(environment) == another


def test_one_host_of_a_slice_alone_as_the_documentation_says(monkeypatch):
    monkeypatch.setattr(processes, "_chips", lambda: True)
    page = Path(__file__).parents[2].joinpath("docs", "launch.md").read_text()
    block = page[page.index("### One host of a slice alone") :]
    recipe = dict(re.findall(r"([A-Z_]+)=(\S+)", block[: block.index("a3jax generate")]))
    assert "TPU_SKIP_MDS_QUERY" in recipe
    for environment in ({}, GKE | {"TPU_WORKER_ID": "3"}, GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}):
        assert not several(Processes(), environment | recipe)
        assert not is_another(environment | recipe)


def test_the_service_of_a_tpu_vm_is_asked_where_there_are_chips_unless_it_is_forbidden(monkeypatch):
    monkeypatch.setattr(processes, "_chips", lambda: True)
    assert several(Processes(), {})
    assert not several(Processes(), {"TPU_SKIP_MDS_QUERY": "1"})
    assert not several(Processes(), {"JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize(
    ("given", "environment", "error", "said"),
    [
        (Processes("host:1234", 2, 1), {}, RuntimeError("DEADLINE"), "process 1 of 2 could not join the others at host:1234"),
        (Processes(), SLURM, RuntimeError("DEADLINE"), "this process could not join the others: DEADLINE"),
        (Processes(), GKE, ValueError("undefined"), "the processes could not find each other: undefined"),
    ],
)
def test_others_that_are_not_there_are_worth_another_try_but_not_an_unknown_place(
    given, environment, error, said, monkeypatch
):
    import jax

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(UserError, match=said) as refused:
        connect(given, environment)
    assert refused.value.status == (75 if isinstance(error, RuntimeError) else 2)


@pytest.mark.parametrize("error", [ValueError("no cluster"), ConnectionError("no service"), RuntimeError("DEADLINE")])
def test_chips_without_a_service_are_used_alone_but_never_when_others_are_late(error, monkeypatch):
    import jax

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(processes, "_chips", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(NotJoined) if isinstance(error, RuntimeError) else contextlib.nullcontext():
        connect(Processes(), {})


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (Processes("host:1234"), {}, "--processes is missing"),
        (Processes("host:1234", 2), {}, "--process is missing"),
        (Processes(processes=2, process=0), {}, "--coordinator is missing"),
        (Processes(process=1), {}, "--coordinator is missing"),
        (Processes(), {"JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS"),
        (Processes(processes=2), SLURM, "--coordinator is missing"),
        (Processes("host", 2, 1), {}, "HOST:PORT"),
        (Processes(":1234", 2, 1), {}, "HOST:PORT"),
        (Processes("host:http", 2, 1), {}, "HOST:PORT"),
        (Processes("host:0", 2, 1), {}, "HOST:PORT"),
        (Processes("host:65536", 2, 1), {}, "HOST:PORT"),
        (Processes("host:1234", 2, 2), {}, "from 0 to 1"),
        (Processes("host:1234", 2, -1), {}, "from 0 to 1"),
        (Processes("host:1234", 0, 0), {}, "at least 1"),
        (Processes(), PLACED | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a number"),
        (Processes(), PLACED | {"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is ''; it must be a number"),
        (Processes(), PLACED | {"JAX_PROCESS_ID": "²"}, "it must be a number"),
        (Processes(), JOB | {"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX is '-1'; it must be a number"),
        (Processes(), JOB | {"JAX_NUM_PROCESSES": "3"}, "--process is 3; of 3 processes"),
        (Processes(), SLURM | {"SLURM_NTASKS": "2(x2)"}, "SLURM_NTASKS is '2(x2)'; it must be a number"),
    ],
)
def test_half_a_place_and_one_that_makes_no_sense_are_refused(given, environment, said):
    with pytest.raises(UserError) as refused:
        several(given, environment)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def parent(tmp_path: Path, child: str) -> subprocess.Popen[str]:
    """A process, in a group of its own, that continues in a child, which then runs `child`."""
    program = tmp_path / "program.py"
    begin = "import os, signal, sys, time\nfrom pathlib import Path\nfrom a3jax.devices.processes import continue_in_child\n"
    here = f"continue_in_child()\nhere = Path({str(tmp_path)!r})\n"
    program.write_text(begin + here + textwrap.dedent(child))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, program], stdout=pipe, stderr=pipe, text=True, process_group=0)


WAITING = """
    caught = []
    signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    (here / "pid.new").write_text(str(os.getpid()))
    (here / "pid.new").rename(here / "pid")
    until = time.monotonic() + 20
    while not caught and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    print(caught)
    sys.exit(128 + caught[0])
"""


def pid_of_child(tmp_path: Path) -> int:
    until = time.monotonic() + 20
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int((tmp_path / "pid").read_text())


@pytest.mark.parametrize("status", [0, 2, 75])
def test_the_parent_exits_as_its_child_does(status, tmp_path):
    process = parent(tmp_path, f"print(os.getppid())\nsys.exit({status})")
    said, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert int(said) == process.pid
    assert errors == ""


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the parent", "to its group, as a terminal does"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_child_once(number, send, tmp_path):
    process = parent(tmp_path, WAITING)
    pid_of_child(tmp_path)
    send(process.pid, number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"[{int(number)}]\n"


def test_a_child_ended_by_a_signal_gives_the_status_that_shells_do(tmp_path):
    process = parent(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert errors == ""


def test_an_abort_means_that_process_0_was_lost_and_the_command_is_to_be_tried_again(tmp_path):
    process = parent(tmp_path, "os.abort()")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == processes.TRY_AGAIN
    assert [line for line in errors.splitlines() if line.startswith("a3jax: process 0") and "was lost" in line]


def test_the_host_of_process_0_is_named_once_it_is_known(tmp_path):
    process = parent(tmp_path, "from a3jax.devices.processes import meeting_at\nmeeting_at('far=away')\nos.abort()")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == processes.TRY_AGAIN
    assert errors.splitlines()[-1].startswith("a3jax: host far=away (process 0), where all processes meet, was lost; start")


def test_an_abort_on_the_way_out_leaves_the_status_that_the_child_was_to_end_with(tmp_path):
    """And a process that outlives the child, as its workers may, keeps nobody waiting."""
    program = """
        from a3jax.devices.processes import failing
        if not os.fork():
            os.close(1), os.close(2)
            time.sleep(5)
            os._exit(0)
        failing(2)
        os.abort()
    """
    process = parent(tmp_path, program)
    begun = time.monotonic()
    assert process.wait(20) == 2
    assert time.monotonic() - begun < 4
    assert "was lost" not in process.communicate()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_the_child_dies_with_its_parent(tmp_path):
    process = parent(tmp_path, WAITING)
    child = pid_of_child(tmp_path)
    process.kill()
    process.communicate(timeout=10)  # ends when nobody holds the pipes any more: not before the child has died
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
