"""The scripts in launch/, as a user or a scheduler starts them."""

import os
import signal
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"
NAMES = [
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
]


def start(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM_")}
    words, environment, pipe = [str(word) for word in command], inherited | environment, subprocess.PIPE
    # Whoever runs the tests in the background has them ignore SIGINT, which what they start would inherit.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, process_group=0)
    finally:
        signal.signal(signal.SIGINT, heeded)


def run(*command: object, cwd: Path | None = None, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, lines of standard output, and standard error."""
    process = start(*command, cwd=cwd, **environment)
    said, errors = process.communicate(timeout=30)
    return process.returncode, said.splitlines(), errors
