"""What may pass is tried again, three times without a new checkpoint; what comes again every time ends at once."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import jax
import pytest

from a3jax.devices.passing import Passing, may_pass, needs_memory
from a3jax.files.strict import to_json
from a3jax.train.loop import train
from a3jax.train.report import Report
from a3jax.train.tries import GivenUp, Tries

BROKEN = """
import jax
from a3jax.train.report import Report
step = Report.step

def fail(*_):
    raise ValueError("out of order")

def broken(self, number, stage, metrics):
    step(self, number, stage, metrics)
    if number == {step}:
        jax.block_until_ready(jax.jit({what})(0.0))

Report.step = broken
"""
CALLBACK = "lambda x: jax.pure_callback(fail, x, x)"
MEMORY = "lambda x: jax.numpy.zeros(2**50) + x"


def start(config, code: str = "", **environment: str) -> tuple[int, list[str]]:
    """`a3jax train` in a process of its own, with `code` in its experiment. The status, and what it says in the end."""
    file = config.run_folder.with_suffix(".py")
    file.write_text(
        f"{code}\nfrom a3jax.config import Config\nfrom a3jax.files.strict import from_json\n\n\n"
        f"def experiment():\n    return from_json(Config, {to_json(config)!r}, 'here')\n"
    )
    here = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    here |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment}
    command = [sys.executable, "-m", "a3jax.cli", "train", str(file)]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False, timeout=200)
    return done.returncode, done.stderr.splitlines()


def without_progress(said: list[str], name: str) -> list[str]:
    """What a run says beside what it is to do, which it says while JAX loads, and what it waits for."""
    return [line for line in said if not line.startswith((f"a3jax: {name}: 8 steps into ", "a3jax: train: "))]


@pytest.mark.long
@pytest.mark.slow
def test_a_runtime_error_is_75_until_three_starts_saved_nothing_and_a_checkpoint_begins_the_count_anew(experiment):
    config = experiment("passing")
    code = BROKEN.format(step=2, what=CALLBACK)
    for _ in range(2):
        status, said = start(config, code)
        assert status == 75, said
        rest = without_progress(said, "test")
        (line,) = (line for line in rest if line.startswith("a3jax: "))  # beside what JAX logs of the callback
        assert line.startswith("a3jax: INTERNAL: ")
        assert line.endswith("start the same command again on all hosts: it goes on from the last checkpoint")
    assert json.loads((config.run_folder / "tries.json").read_text()) == {"step": 0, "failed": 2}

    status, said = start(config, BROKEN.format(step=5, what=CALLBACK))
    assert status == 75, "it has saved step 3 before"
    for _ in range(2):
        assert start(config, BROKEN.format(step=5, what=CALLBACK))[0] == 75
    status, said = start(config, BROKEN.format(step=5, what=CALLBACK))
    assert status == 1, said
    assert any(line.startswith("Traceback") for line in said), "as of a defect"
    assert "3 starts have failed one after the other with no new checkpoint (since that of step 3), so it is" in said[-1]
    assert start(config, BROKEN.format(step=5, what=CALLBACK))[0] == 75, "whoever starts it by hand has seen to it"
    status, said = start(config)
    computing, end = without_progress(said, "test")
    assert status == 0
    assert computing.startswith("computing with JAX ")
    assert end.startswith("a3jax: 8 of 8 steps; try: a3jax generate ")


@pytest.mark.long
def test_devices_that_do_not_start_are_75_and_too_little_memory_is_2(experiment):
    config = experiment("devices")
    config.run_folder.parent.mkdir(exist_ok=True)
    said = "a3jax: Unable to initialize backend 'tpu': "
    for expected in (75, 75, 1):  # this machine has none
        status, lines = start(config, JAX_PLATFORMS="tpu")
        assert (status, lines[-1][: len(said)]) == (expected, said), lines
    status, lines = start(config, BROKEN.format(step=2, what=MEMORY))
    assert status == 2, lines
    computing, line = without_progress(lines, "test")
    assert computing.startswith("computing with JAX ")
    assert line.startswith("a3jax: there is too little memory (RESOURCE_EXHAUSTED: ")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Gloo AllReduce failed: timed out"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: The following tasks are unhealthy"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed: unhandled system error"), True),
        (jax.errors.JaxRuntimeError("ABORTED: The TPU is already in use by process with pid 7"), True),
        (jax.errors.JaxRuntimeError("DATA_LOSS: uncorrectable ECC error"), True),
        (RuntimeError("Unable to initialize backend 'tpu': UNKNOWN: TPU initialization failed: No ba16c7433 device"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: [external/gloo/pair.cc:547] Connection closed by peer"), True),
        (Passing("a file system is away"), True),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected parameter 0 of size 4"), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), False),
        (RuntimeError("Unable to initialize backend 'tpv': Backend 'tpv' is not in the list of known backends"), False),
        (ValueError("DATA_LOSS: Error reading local file: CRC-32C mismatch"), False),
        (RuntimeError("an INTERNAL: matter"), False),
        (RuntimeError("INTERNALS: matter"), False),
        (KeyError("UNAVAILABLE: "), False),
        (OSError(errno.ENOENT, "UNAVAILABLE: "), False),
    ],
)
def test_what_may_pass(error, passes):
    assert may_pass(error) == passes
    assert needs_memory(error) == ("RESOURCE_EXHAUSTED" in str(error))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"step": 0}', '{"step": 0, "failed": "2"}', "[" * 100_000, "\x00"])
def test_a_damaged_count_is_none(damage, tmp_path):
    (tmp_path / "tries.json").write_text(damage)
    assert not Tries(tmp_path).is_last
    assert isinstance(Tries(tmp_path).failed("it broke", first=True), Passing)
    assert json.loads((tmp_path / "tries.json").read_text()) == {"step": 0, "failed": 1}


def test_all_processes_end_with_one_status_though_process_0_writes_before_the_others_fail(tmp_path):
    for expected in (Passing, Passing, GivenUp):
        processes = [Tries(tmp_path) for _ in range(3)]
        ends = [one.failed("it broke", first=i == 0) for i, one in enumerate(processes)]
        assert [type(end) for end in ends] == [expected] * 3
        assert [one.is_last for one in processes] == [expected is GivenUp] * 3
    assert not (tmp_path / "tries.json").exists()


def test_a_defect_and_a_mistake_are_not_tried_again(experiment, monkeypatch):
    for error in (ZeroDivisionError("a defect"), jax.errors.JaxRuntimeError("INVALID_ARGUMENT: a defect")):
        monkeypatch.setattr(Report, "step", lambda *_, error=error: (_ for _ in ()).throw(error))
        config = dataclasses.replace(experiment("defect"))
        with pytest.raises(type(error), match="a defect"):
            train(config)
    assert not (config.run_folder / "tries.json").exists()
