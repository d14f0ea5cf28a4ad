"""Running a sweep: each trial is a process `a3jax train` of its own, so many at once, and what fails is set apart.

Whether a trial is still to be run is read from its folder. So the same command goes on with a sweep that was stopped or
killed, at any moment, and ends as one that was not. A child does not outlive this process.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from a3jax.devices.interrupt import stop_requests
from a3jax.devices.passing import TRY_AGAIN
from a3jax.errors import UserError
from a3jax.files.desk import Desk
from a3jax.files.folders import move, unwritable, write_whole
from a3jax.files.holding import held, is_held
from a3jax.files.strict import to_json
from a3jax.progress import Progress, console
from a3jax.sweep.halving import best, stops
from a3jax.sweep.status import last_lines
from a3jax.sweep.trials import FAILED, LOG, RUNS, Sweep, Trial, reached, save_sweep
from a3jax.train.metrics import say_unsent
from a3jax.train.run import CONFIG, LOCK, check_same, is_training

COMMAND = (sys.executable, "-m", "a3jax.commands.trial")
POLL_SECONDS = 0.1
STOPPED = tuple(code for number in (signal.SIGINT, signal.SIGTERM) for code in (128 + number, -number))
"""Exit statuses of a run that was told to stop: it is no failure, and goes on with the next call."""


class Job(NamedTuple):
    """A trial, and how far it is to be run."""

    trial: Trial
    stop: int


class Running(NamedTuple):
    """A trial on its way."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    """What it writes grows here, on this machine."""
    sending: contextlib.ExitStack
    """Keeps the log in its folder up to date until it is closed."""


def run_sweep(sweep: Sweep, folder: Path, at_once: int, retry: bool = False) -> int:
    """Run all trials that are not done, so many at once; with `retry`, those that failed too. Returns a signal, or 0.

    Raises `UserError` if the folder holds other runs of the same names, or another process runs a sweep there.
    """
    for trial in sweep.trials:
        _check(folder, trial)
    with _held(folder), stop_requests() as caught:
        save_sweep(sweep, folder)
        for trial in sweep.trials if retry else ():
            _retry(folder, trial)
        going: Sequence[Trial] = sweep.trials
        rungs = len(stops(sweep, sweep.trials[0]))
        for rung in range(rungs):
            title = f"rung {rung + 1} of {rungs}" if sweep.halving else "sweep"
            _run(folder, [Job(trial, stops(sweep, trial)[rung]) for trial in going], at_once, caught, title)
            if sweep.halving is None or rung + 1 == rungs or caught():
                break
            if (better := best(folder, sweep, sweep.halving, rung, going)) is None:  # one was stopped from outside
                break
            going = better
    return caught()


def run_one(sweep: Sweep, folder: Path, index: int, retry: bool = False) -> NoReturn:
    """Become `a3jax train` of one trial, by its number from 0, for launchers that start every trial themselves.

    Raises `UserError` for a number that is none of theirs, and for a trial that failed before, unless `retry` is given.
    """
    if not 0 <= index < len(sweep.trials):
        raise UserError(f"--index is {index}; the sweep has trials 0 to {len(sweep.trials) - 1}")
    trial = sweep.trials[index]
    _check(folder, trial)
    for each in (folder, folder / RUNS / trial.name):
        if is_held(each / LOCK):
            raise UserError(f"{each} is being written by another process; wait for it")
    save_sweep(sweep, folder)
    if retry:
        _retry(folder, trial)
    if (failed := folder / FAILED / trial.name).is_dir():
        raise UserError(f"{failed} has failed before; see {LOG} there, and give --retry to go on with it")
    config = _write_config(folder, Job(trial, trial.config.steps))
    os.execv(sys.executable, [sys.executable, "-m", "a3jax.cli", "train", str(config)])


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it for this process."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder / LOCK, folder))
        except OSError as error:
            raise unwritable(folder, error, "choose another with --out") from None
        yield


def _check(folder: Path, trial: Trial) -> None:
    for kind in (RUNS, FAILED):
        if (folder / kind / trial.name / CONFIG).is_file():
            check_same(folder / kind / trial.name, trial.config)


def _retry(folder: Path, trial: Trial) -> None:
    if (failed := folder / FAILED / trial.name).is_dir():
        move(failed, folder / RUNS / trial.name)


def _run(folder: Path, jobs: Sequence[Job], at_once: int, caught: Callable[[], int], title: str) -> None:
    """Bring all trials to where they are to stop, or as far as they come before a signal."""
    waiting = [job for job in jobs if not _over(folder, job)]
    running: dict[int, Running] = {}
    with Progress(title, len(jobs), "runs", len(jobs) - len(waiting)) as bar:
        try:
            while (left := len(running) + len(waiting)) and not caught():
                for place in range(at_once):
                    if place not in running and (job := _next(folder, waiting)) is not None:
                        running[place] = _start(folder, job, place, at_once)
                for place, one in list(running.items()):
                    if one.process.poll() is not None:
                        del running[place]
                        _ended(folder, one)
                        if one.process.returncode == TRY_AGAIN:  # until it gives up by itself
                            waiting.append(one.job)
                names = ", ".join(one.job.trial.name for one in running.values())
                bar.advance(left - len(running) - len(waiting), names)
                time.sleep(POLL_SECONDS)
        finally:
            for one in running.values():
                one.process.terminate()
            for one in running.values():
                one.process.wait()
                _ended(folder, one)


def _next(folder: Path, waiting: list[Job]) -> Job | None:
    """Take from those that wait the first that can be started; those that are over meanwhile are taken too."""
    for job in list(waiting):
        # One that trains already is another's, or outlives for a moment a sweep that was killed.
        if not is_training(folder / RUNS / job.trial.name):
            waiting.remove(job)
            if not _over(folder, job):
                return job
    return None


def _over(folder: Path, job: Job) -> bool:
    failed = (folder / FAILED / job.trial.name).is_dir()
    return failed or reached(folder / RUNS / job.trial.name) >= job.stop


def _write_config(folder: Path, job: Job) -> Path:
    trial, stop = job
    train = dataclasses.replace(trial.config.train, stop_at=None if stop == trial.config.steps else stop)
    file = folder / RUNS / trial.name / CONFIG
    write_whole(file, to_json(dataclasses.replace(trial.config, train=train)))
    return file


def _start(folder: Path, job: Job, place: int, at_once: int) -> Running:
    config, sending = _write_config(folder, job), contextlib.ExitStack()
    log = sending.enter_context(Desk(config.parent, LOG, failed=say_unsent)).folder / LOG
    command = [*COMMAND, str(os.getpid()), str(config)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **share_of_gpus(place, at_once, os.environ)}
    with log.open("ab") as out:  # its own group, so that an interrupt from a terminal comes once
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, process_group=0
        )
    return Running(job, process, log, sending)


def share_of_gpus(place: int, at_once: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable by which a run sees its share of this machine's GPUs; where there are too few, some get the same."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    if at_once == 1 or not gpus or named == "":
        return {}
    share = max(1, len(gpus) // at_once)
    first = place * share % len(gpus)
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + share])}


def _ended(folder: Path, one: Running) -> None:
    """Send the rest of a run's log; set one that failed apart, and say so."""
    status, name = one.process.returncode, one.job.trial.name
    if status in (0, TRY_AGAIN, *STOPPED):
        one.sending.close()
        return
    run, failed = folder / RUNS / name, folder / FAILED / name
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    with one.log.open("a") as log:
        log.write(f"a3jax sweep: {how}\n")
    one.sending.close()
    move(run, failed)
    lines = f"{name} failed; its run is now in {failed}\n{last_lines(failed / LOG)}"
    console.print(lines, soft_wrap=True)
