"""The plans of the experiments as the table of docs/plan.md: each compiled for its topology, which takes minutes.

pip install 'a3jax[tpu]'
python benchmarks/plans.py ["EXPERIMENT TOPOLOGY [OPTION ...]" ...]
"""

import json
import subprocess
import sys
from typing import Any

PLANS = (
    "llama_1b v5e:2x4",
    "llama_1b v6e:2x4",
    "llama_3b v5p:2x2x2",
    "llama_3b v6e:4x4",
    "llama_8b v5p:4x4x4",
    "llama_8b v5p:4x4x4 --mesh.data 2 --mesh.fsdp 32",
    "llama_8b tpu7x:2x2x4",
    "llama_8b v5e:2x4",
)
"""Experiment, topology, and options where the experiment's own do not suit."""
HEAD = ("experiment", "chips", "mesh", "remat", "GiB a device", "stage", "seconds", "bound by", "MFU", "hours")
GIB = 2**30


def main() -> None:
    """Print the table row by row, then the versions."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for words in sys.argv[1:] or PLANS:
        experiment, topology, *options = words.split()
        command = [sys.executable, "-m", "a3jax.cli", "plan", experiment, "--topology", topology, *options, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: does not fit
            sys.exit(done.returncode)
        answer = json.loads(done.stdout.splitlines()[-1])
        for row in rows(answer):
            print(f"| {experiment.replace('_', ' ')} | {topology} | {' | '.join(row)} |", flush=True)
    print(f"\nJAX {answer['jax']}, libtpu {answer['libtpu']}.")


def rows(answer: dict[str, Any]) -> list[list[str]]:
    """One for each program that was compiled; the last tells what the whole curriculum takes."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in answer["mesh"].items() if size > 1)
    stages = [stage for stage in answer["stages"] if stage["compiled_as"] == stage["name"]]
    found = []
    for stage in stages:
        used = f"{sum(stage['memory'].values()) / GIB:.1f} of {answer['hbm_bytes'] / GIB:.0f}"
        row = [mesh, answer["remat"], used, stage["name"]]
        if stage["fits"]:
            row += [f"{stage['seconds']:.3g} to {stage['serial_seconds']:.3g}", stage["bound_by"]]
            row += [f"{stage['mfu']:.0%} to {stage['serial_mfu']:.0%}"]
        else:
            row += ["", f"{stage['bytes_over']:,} bytes over", ""]
        hours = f"{answer['seconds'] / 3600:.3g} to {answer['serial_seconds'] / 3600:.3g}" if answer["fits"] else ""
        found.append([*row, hours if stage is stages[-1] else ""])
    return found


if __name__ == "__main__":
    main()
