"""One evaluation on one device and over meshes of eight simulated ones; run by test_evaluation_on_a_mesh.py.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python evaluation_process.py MODEL TEXTS STORIES OUT

OUT gets a folder of results for each mesh.
"""

import sys

import jax

from a3jax.cli import main

MESHES = {
    "one device": ((), ("likelihood", "stories", "code")),
    "data x fsdp x tensor": (
        ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"),
        ("likelihood", "stories", "code"),
    ),
    "context": (("--mesh.fsdp", "2", "--mesh.context", "4"), ("likelihood",)),
}
"""By name: the options, and the tasks that are evaluated so."""


def run(model: str, texts: str, stories: str, out: str) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    for name, (mesh, tasks) in MESHES.items():
        data = ["--text", texts, "--code", texts, "--stories", stories, "--settings", "one"]
        how = ["--orders", "ar", "random_4", "--longest", "60", "--limit", "3", "--batch", "3"]
        main(["evaluate", model, "--tasks", *tasks, *data, *how, *mesh, "--out", f"{out}/{name}"])


if __name__ == "__main__":
    run(*sys.argv[1:])
