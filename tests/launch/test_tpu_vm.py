"""`launch/tpu_vm.sh` and `launch/tpu_request.sh`: what reaches every worker, and what is kept running until it is done."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starting import LAUNCH, run


def tpu_vm(*arguments: str, **environment: str) -> list[list[str]]:
    """The commands that it would run, as lists of words."""
    status, said, errors = run(LAUNCH / "tpu_vm.sh", *arguments, DRY_RUN="1", **environment)
    assert (status, errors) == (0, "")
    unquoted = 'eval "words=($0)"; printf "%s\\0" "${words[@]}"'
    return [subprocess.run(["bash", "-c", unquoted, line], stdout=-1, text=True).stdout.split("\0")[:-1] for line in said]


SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-east5-a", "--worker=all"]


def test_tpu_vm_copies_installs_and_starts_on_every_worker():
    copy, install, begin = tpu_vm("pod", "us-east5-a", "a3jax", "train", "my run", "--run", "/shared/$x")
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["pod:a3jax.tar.gz", "--zone=us-east5-a", "--worker=all"]
    assert not Path(copy[5]).exists()
    assert install[:-1] == begin[:-1] == SSH
    assert '-c launch/constraints-tpu.txt ".[tpu,buckets]"' in install[-1]
    assert "mount" not in install[-1]
    assert "sudo mount -t nfs 10.0.0.2:/share /shared" in tpu_vm("pod", "z", "a3jax", SHARED="10.0.0.2:/share")[1][-1]
    assert tpu_vm("pod", "us-east5-a")[0][:-1] == SSH
    assert tpu_vm("pod", "us-east5-a", "stop")[0][:-1] == SSH


@pytest.mark.long
def test_what_tpu_vm_would_run_on_a_worker_starts_the_command_logs_its_status_and_stops_it(tmp_path):
    (tmp_path / "a3jax").mkdir()
    program = tmp_path / "it's a program.py"
    program.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print(*sys.argv[1:])\ntime.sleep(20)\n"
    )

    def worker(*arguments: str) -> tuple[int, list[str], str]:
        *_, command = tpu_vm("pod", "z", *arguments)
        return run("bash", "-c", command[-1].removeprefix("--command="), cwd=tmp_path)

    def log_ends_with(line: str) -> None:
        until = time.monotonic() + 20
        while not (log := tmp_path / "a3jax" / "run.log").exists() or not log.read_text().endswith(line):
            assert time.monotonic() < until
            time.sleep(0.01)

    assert worker(sys.executable, str(program), "a  b", "$HOME") == (0, [], "")
    log_ends_with("a  b $HOME\n")
    assert worker()[1][1:] == ["a  b $HOME"]
    _, install, _ = tpu_vm("pod", "z", "a3jax")
    status, _, errors = run("bash", "-c", install[-1].removeprefix("--command="), cwd=tmp_path)
    assert (status, errors) == (1, "it still runs; stop it first\n")
    assert worker("stop")[0] == 0
    log_ends_with("exit status 143\n")


def test_tpu_vm_reaches_every_slice_of_a_request():
    commands = tpu_vm("pod", "us-east5-a", "status", SLICES="2")
    assert [command[5] for command in commands] == ["pod-0", "pod-1"]
    copies = [command[6] for command in tpu_vm("pod", "us-east5-a", "a3jax", SLICES="2") if command[4] == "scp"]
    assert copies == ["pod-0:a3jax.tar.gz", "pod-1:a3jax.tar.gz"]


REQUEST = ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--zone=us-east5-a"]


def requested(*arguments: str, **environment: str) -> list[str]:
    status, said, errors = run(LAUNCH / "tpu_request.sh", *arguments, DRY_RUN="1", **environment)
    assert (status, errors) == (0, "")
    return shlex.split(said[0])


def test_tpu_request_asks_for_one_slice_or_several_and_for_the_image_of_the_chip():
    words = requested("pod", "us-east5-a", "v5p-128")
    assert words[:7] == REQUEST
    assert words[7:] == ["--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--node-id=pod"]
    words = requested("pod", "us-east5-a", "v6e-16", SLICES="2", SPOT="1", ACCOUNT="a3jax@p.iam")
    assert {"--node-count=2", "--node-prefix=pod", "--spot", "--service-account=a3jax@p.iam"} <= set(words)
    assert "--runtime-version=v2-alpha-tpuv6e" in words
    status, _, errors = run(LAUNCH / "tpu_request.sh", "pod", "z", "tpu7x-128")
    assert (status, errors.count("\n")) == (2, 1)
    assert "Cloud TPU has no newer ones: take GKE" in errors


@pytest.fixture
def cloud(tmp_path):
    """`tpu_request.sh` with a `gcloud` that answers as it is told: the states of the request one after the other, and what
    the workers say of the command; returns the status, and what `gcloud` was asked.
    """
    fake = tmp_path / "gcloud"
    fake.write_text(
        f"""#!/bin/bash
cd {shlex.quote(str(tmp_path))}
next() {{ head -n 1 $1; if (($(wc -l <$1) > 1)); then sed -i 1d $1; fi; }}
case "$4 $5" in
    describe*) next states ;;
    create*) echo request >>asked ;;
    delete*) echo delete >>asked ;;
    ssh*) case "$*" in
        *run.pid*running*) next said ;;
        *nohup*) echo start >>asked ;;
        esac ;;
esac
"""
    )
    fake.chmod(0o755)

    def keep(states: list[str], said: list[str], **environment: str) -> tuple[int, list[str]]:
        (tmp_path / "states").write_text("".join(f"{line}\n" for line in states))
        (tmp_path / "said").write_text("".join(f"{line}\n" for line in said))
        (tmp_path / "asked").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        ended = run(LAUNCH / "tpu_request.sh", "pod", "z", "v5p-8", "a3jax", "train", PATH=path, EVERY="0", **environment)
        return ended[0], (tmp_path / "asked").read_text().split()

    return keep


@pytest.mark.parametrize(
    ("states", "said", "status", "asked"),
    [
        (["", "PROVISIONING", "ACTIVE"], ["", "running", "exit status 0"], 0, ["request", "start"]),
        (["ACTIVE"], ["exit status 0", "running", "exit status 0"], 0, ["start"]),  # the status before is an older command's
        (["ACTIVE"], ["", "exit status 75", "running", "exit status 0"], 0, ["start", "start"]),
        (["ACTIVE"], ["running", "exit status 2"], 2, []),
        (["ACTIVE", "SUSPENDED", "", "ACTIVE"], ["", "", "exit status 0"], 0, ["start", "delete", "request", "start"]),
        pytest.param(["ACTIVE"], ["", "exit status 137"], 75, ["start"] * 3, marks=pytest.mark.long),
    ],
)
def test_tpu_request_keeps_a_command_running_until_it_is_done_or_hopeless(states, said, status, asked, cloud):
    assert cloud(states, said, RESTARTS="2") == (status, asked)
