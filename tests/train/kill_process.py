"""Train, and be killed at random moments; run by test_faults.py in a process of its own.

    python kill_process.py CONFIG.json KILLS SEED

The experiment is trained in a child process, forked once everything is imported, that gets SIGKILL after a random time
(every fourth one as soon as a checkpoint is being written after that) and is followed by another, until there were so many
kills; the last one trains to the end. Prints one JSON list: for each kill what the run had reached, and its state.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from a3jax.config import Config
from a3jax.files.strict import read
from a3jax.train import loop
from a3jax.train.metrics import read as read_metrics

STILL_THERE = os.WEXITED | os.WNOHANG | os.WNOWAIT


def half_written(config: Config) -> list[Path]:
    return list((config.run_folder / "checkpoints").glob("*tmp*"))


def train_in_child(config: Config, seconds: float | None, while_saving: bool = False) -> bool:
    """Whether it came to its end before it was killed."""
    child = os.fork()
    if not child:
        loop.train(config)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        while while_saving and not half_written(config) and not os.waitid(os.P_PID, child, STILL_THERE):
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(file: str, kills: str, seed: str) -> None:
    config, moments = read(Config, Path(file)), random.Random(int(seed))
    reached = []
    longest = 3.0
    while len(reached) < int(kills):
        if train_in_child(config, moments.uniform(0.2, longest), while_saving=len(reached) % 4 == 3):
            longest /= 2  # too late to matter
            sys.exit("the run ended before the kills did: give it more steps") if longest < 0.5 else None
            continue
        steps = sorted(int(path.name) for path in (config.run_folder / "checkpoints").glob("*") if path.name.isdigit())
        logged = [row["step"] for row in read_metrics(config.run_folder)]
        reached.append(
            {"saved": steps[-1] if steps else 0, "logged": max(logged, default=0), "half_written": len(half_written(config))}
        )
    assert train_in_child(config, None)
    print(json.dumps(reached))


if __name__ == "__main__":
    main(*sys.argv[1:])
