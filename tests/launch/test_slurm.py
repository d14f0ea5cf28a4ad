"""`launch/slurm.sh`: what is started in every task, and what is queued again."""

import os
import shlex
import signal

import pytest
from starting import LAUNCH, run, start


@pytest.fixture
def slurm(tmp_path):
    """`slurm.sh` with a `srun` that ends as it is told; returns the status, and what `srun` and `scontrol` were asked."""
    for name, status in (("srun", "$SRUN_STATUS"), ("scontrol", "0")):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >>{shlex.quote(str(tmp_path))}/asked\nexit {status}\n')
        fake.chmod(0o755)

    def submit(status: int, **environment: str) -> tuple[int, list[str]]:
        place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SRUN_STATUS": str(status)}
        ended = run(LAUNCH / "slurm.sh", "a3jax", "train", "a b", **place, **environment)[0]
        return ended, (tmp_path / "asked").read_text().splitlines()

    return submit


REQUEUE = ["scontrol", "requeue", "42"]


def test_slurm_starts_the_command_as_it_is_in_every_task_and_lets_the_others_end_by_themselves(slurm):
    status, asked = slurm(0, SLURM_CPUS_PER_TASK="6")
    assert status == 0
    assert asked[0] == "srun"
    assert asked[-3:] == ["a3jax", "train", "a b"]
    assert set(asked[1:-3]) == {"--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task=6"}


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (139, 0, False),
        (75, 0, True),
        (137, 0, True),
        (143, 0, True),
        (75, 19, True),
        (75, 20, False),
        (137, 20, False),
        (143, 500, True),
    ],
)
def test_slurm_queues_again_what_was_stopped_or_lost_but_not_for_ever(status, restarts, again, slurm):
    ended, asked = slurm(status, SLURM_RESTART_COUNT=str(restarts))
    assert ended == status
    assert asked[-3:] == (REQUEUE if again else ["a3jax", "train", "a b"])


def test_slurm_does_not_queue_again_a_job_that_was_cancelled(tmp_path):
    """`scancel` sends SIGTERM to tasks and to the shell."""
    (tmp_path / "srun").write_text("#!/bin/bash\necho started\ntrap 'sleep 0.2; exit 143' TERM\nsleep 20 & wait\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho queued again\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    process = start(LAUNCH / "slurm.sh", "a3jax", PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="42")
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == ""
