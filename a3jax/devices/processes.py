"""The processes of one run: how they find each other, and what becomes of the others when one is lost.

JAX runs the same program in every process, each with devices of its own (multi-controller). Who starts them is not our
business: Slurm, GKE and the TPU VM service do, and tell each process its place in the environment; or three options do.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from a3jax.devices.passing import TRY_AGAIN, Passing
from a3jax.errors import UserError, first_line
from a3jax.outside_text import say

CONNECT_SECONDS = 300


class NotJoined(Passing):
    """The others were not there in time: their hosts may still be starting, so trying again can help."""


@dataclass(frozen=True)
class Processes:
    """How this process finds the others; without any of it, from the environment."""

    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    """An address of process 0 that the others reach. Else JAX_COORDINATOR_ADDRESS."""
    processes: int | None = None
    """How many there are. Else JAX_NUM_PROCESSES."""
    process: int | None = None
    """Which one this is, from 0. Else JAX_PROCESS_ID, or JOB_COMPLETION_INDEX of a Kubernetes job."""


def several(given: Processes, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several, as far as options and environment say."""
    if (found := _explicit(given, environment)) is not None:
        return found[1] > 1
    return _cluster(environment)


def connect(given: Processes, environment: Mapping[str, str] = os.environ) -> None:
    """Join the others, if there are any; before the first use of a device.

    Raises `NotJoined` if they cannot be reached, and `UserError` where neither options nor environment say who they are.
    """
    import jax

    found = _explicit(given, environment)
    if found is None and not _cluster(environment):
        return
    address, count, index = found or (given.coordinator, None, None)
    if count == 1:
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours, see `a3jax.devices.interrupt`
    try:
        # A lost process is found by `a3jax.train.hosts`, which names it; this is for what it cannot see.
        jax.distributed.initialize(
            address, count, index, heartbeat_timeout_seconds=100, initialization_timeout=CONNECT_SECONDS
        )
    except RuntimeError as error:
        who = f"process {index} of {count}" if found else "this process"
        where = f" at {address}" if address else ""
        raise NotJoined(f"{who} could not join the others{where}: {first_line(error)}") from None
    except (ValueError, OSError) as error:
        if found is None and not _told(environment):
            return  # chips that no service looks after: this machine alone
        raise UserError(f"the processes could not find each other: {first_line(error)}") from None


def is_first() -> bool:
    """Whether this is process 0, or alone; known, unlike `jax.process_index()`, before any device has started."""
    from jax._src import distributed

    return not distributed.global_state.process_id


def leave() -> None:
    """Wait until the others leave too, so that none of them takes this process for lost; at once if it is alone."""
    import jax

    jax.distributed.shutdown()


def _explicit(given: Processes, environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Address, count and index, if any of them is given. Raises `UserError` unless all are, and make sense."""
    address = given.coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number(given.processes, environment, "JAX_NUM_PROCESSES")
    index = _number(given.process, environment, "JAX_PROCESS_ID")
    if count is None and index is None and (address is None or _cluster(environment)):
        return None  # Slurm and the TPU VM service know the rest
    if index is None:
        index = _number(None, environment, "JOB_COMPLETION_INDEX")
    for name, value in [("coordinator", address), ("processes", count), ("process", index)]:
        if value is None:
            raise UserError(
                f"--{name} is missing: several processes need --coordinator, --processes and --process, or "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            )
    assert address is not None
    assert count is not None
    assert index is not None
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is {address}; it must be HOST:PORT")
    if count < 1:
        raise UserError(f"--processes is {count}; it must be at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process is {index}; of {count} processes it must be from 0 to {count - 1}")
    return address, count, index


def _number(given: int | None, environment: Mapping[str, str], name: str) -> int | None:
    if given is not None or name not in environment:
        return given
    if not environment[name].isdecimal():
        raise UserError(f"{name} is {environment[name]!r}; it must be a number")
    return int(environment[name])


def _cluster(environment: Mapping[str, str]) -> bool:
    """Whether Slurm, or the TPU VM service or GKE with TPUs, started several processes.

    On a TPU VM only the metadata service knows the others: where there are chips, it is asked.
    """
    if environment.get("JAX_PLATFORMS") == "cpu":
        return _slurm(environment)
    return _told(environment) or (_chips() and "TPU_SKIP_MDS_QUERY" not in environment)


def _chips() -> bool:
    """Whether this machine has TPUs, and what JAX needs to use them."""
    devices = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return devices and importlib.util.find_spec("libtpu") is not None


def _told(environment: Mapping[str, str]) -> bool:
    """Whether the environment itself speaks of several processes."""
    hosts = environment.get("TPU_WORKER_HOSTNAMES") or environment.get("TPU_PROCESS_ADDRESSES") or ""
    return _slurm(environment) or "," in hosts or environment.get("MEGASCALE_NUM_SLICES", "1") != "1"


def _slurm(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started several tasks, this one among them; a batch script itself has no list of a step's nodes."""
    if not {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        return False
    return (_number(None, environment, "SLURM_NTASKS") or 1) > 1


def continue_in_child() -> None:
    """Return in a child process only; this one waits for it, passes signals on, and exits as it does.

    JAX ends a process by an abort, in the midst of any work, once its coordinator is gone or others did not come in time;
    the parent then still says what happened. To be called before JAX is imported, since its threads do not survive a fork.
    """
    global _pipe
    parent = os.getpid()
    pipe, _pipe = os.pipe()
    passed_on = (signal.SIGINT, signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # a signal waits until there is somebody to pass it on
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # an interrupt from the terminal reaches the parent alone, which passes it on once
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(pipe)
        die_with(parent)
        return
    os.close(_pipe)
    for number in passed_on:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(pipe, False)  # a worker of the child may outlive it, and hold the other end
    told: dict[str, str] = {}
    with contextlib.suppress(BlockingIOError):
        told = dict(line.split("=", 1) for line in os.read(pipe, 2**12).decode().splitlines())
    if status == -signal.SIGABRT and "status" in told:
        status = int(told["status"])
    if status == -signal.SIGABRT:
        lost = f"process 0, where all processes meet, was lost, or not all of them were there within {CONNECT_SECONDS} s"
        if "meeting" in told:
            lost = f"host {told['meeting']} (process 0), where all processes meet, was lost"
        again = "start the same command again on all hosts: it goes on from the last checkpoint"
        say(f"{lost}; {told.get('given_up', again)}")
        status = 1 if "given_up" in told else TRY_AGAIN
    sys.exit(status if status >= 0 else 128 - status)


_pipe: int | None = None
"""To the parent, lines NAME=VALUE."""


def meeting_at(host: str) -> None:
    """Tell the parent where process 0 is, of whose loss only the parent can speak."""
    _tell("meeting", host)


def last_try(given_up: str) -> None:
    """Tell the parent that this start is the last one, and what to say should it be lost too."""
    _tell("given_up", given_up)


def failing(status: int) -> int:
    """`status`, told to the parent as well: a process that fails alone waits for others that wait for it, and is aborted."""
    _tell("status", str(status))
    return status


def _tell(name: str, value: str) -> None:
    if _pipe is not None:
        os.write(_pipe, f"{name}={value}\n".encode())


def die_with(parent: int) -> None:
    """Have Linux kill this process when its parent is gone, for nobody would be left who knows of it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(TRY_AGAIN)
