"""Programs that nobody vouches for, each run by itself and judged by whether it comes to its end.

What a model writes can do what any program can: delete files, send them away, use up memory, disk and processes, or never
end. So each one runs in a process of its own, `a3jax.execute.case`, within limits of time, memory, file size and open files,
without other processes or threads, without an environment, in an empty folder that is removed, as nobody where root starts
it. What it prints goes nowhere. Confined, it has no network, sees no other process, and no file but those of Python and the
system's libraries, which it cannot write. Unconfined it can read, write and send whatever its user can.

This is a fence against what models write by chance and carelessness. Who expects attacks on the kernel itself has a virtual
machine for it.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from a3jax.errors import UserError
from a3jax.execute import case
from a3jax.execute.case import REFUSED, SIGNALLED

OUT_OF_TIME = "out of time"
_LONGEST = 4096
"""Bytes of an answer."""
_PYTHON = (sys.executable, "-B", "-P", "-s", "-S", case.__file__)
"""Nothing but the standard library."""
_TRIAL = "import hashlib, typing"
"""What any machine must be able to run: modules that Python does not load by itself, and a library of the system's."""
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
"""Sets are in the same order in every run."""


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    cpu_seconds: int = 5
    """Of computing, so that what comes out does not depend on what else the machine does."""
    seconds: float = 20.0
    """Of waiting too."""
    memory_bytes: int = 2**30
    file_bytes: int = 2**24
    """Of a file; confined, of all files together."""
    open_files: int = 64


LIMITS = Limits()


class Sandbox:
    """Runs programs, as many at once as there are processors."""

    def __init__(self, confined: bool, limits: Limits = LIMITS):
        """Raises `UserError` where the machine does not let programs be run so."""
        self._confined, self._limits = confined, limits
        if sys.platform != "linux":
            raise UserError("programs are run on Linux only; leave --execute out, or use a Linux machine")
        (outcome,) = self.run([_TRIAL])
        if outcome != case.PASSED:
            why = f"the library of the Python in {sys.base_prefix}, without any rights of ours, ends in {outcome}"
            raise UserError(self._refused(why))

    @property
    def facts(self) -> dict[str, Any]:
        """All that outcomes follow from besides the programs, as JSON values."""
        return {"confined": self._confined, "python": platform.python_version(), **dataclasses.asdict(self._limits)}

    def run(self, programs: Sequence[str]) -> list[str]:
        """What became of each: `case.PASSED`, `OUT_OF_TIME`, the name of an exception, or how else it ended.

        Those that are alike are run once. Raises `UserError` where one could not be run.
        """
        different = list(dict.fromkeys(programs))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                found = dict(zip(different, pool.map(self._outcome, different)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [found[program] for program in programs]

    def _outcome(self, program: str) -> str:
        word = secrets.token_hex()
        request = {"program": program, "word": word, "confined": self._confined, **dataclasses.asdict(self._limits)}
        answer, status = self._run(json.dumps(request).encode())
        begins, _, outcome = answer.partition(" ")
        if begins == word and outcome.startswith(REFUSED):
            raise UserError(self._refused(outcome.removeprefix(REFUSED)))
        if begins == word:
            return outcome
        if status in (None, SIGNALLED + signal.SIGXCPU):
            return OUT_OF_TIME
        return f"ended by signal {status - SIGNALLED}" if status > SIGNALLED else f"ended with status {status}"

    def _refused(self, why: str) -> str:
        if not self._confined:
            return f"programs cannot be run here ({why}); use a Python that every user can read, or leave --execute out"
        other = "in a container or a virtual machine of its own, which nothing else is in, say --execute unconfined"
        return f"this machine does not let programs be confined ({why}); {other}"

    def _run(self, request: bytes) -> tuple[str, int | None]:
        """The answer of a process, and its status: above `SIGNALLED` the signal that ended it, None if time ran out."""
        end = time.monotonic() + self._limits.seconds
        with tempfile.TemporaryDirectory(prefix="a3jax-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                _PYTHON,
                cwd=folder,
                env=_ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as questions:
                    questions.write(request)
                answer = _read(process.stdout, end)
                status = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return answer, None
            finally:
                process.stdout.close()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # it, and the first process of its namespace
                    process.wait()
        return answer, status if status >= 0 else SIGNALLED - status


def _read(answers: IO[bytes], end: float) -> str:
    """What is written until it is closed or the time is up; whoever writes more than an answer is not listened to."""
    answer, poll = b"", select.poll()
    poll.register(answers, select.POLLIN)
    while len(answer) <= _LONGEST and poll.poll(1000 * max(0.0, end - time.monotonic())):
        if not (more := os.read(answers.fileno(), _LONGEST)):
            break
        answer += more
    return answer.decode("ascii", "replace")
