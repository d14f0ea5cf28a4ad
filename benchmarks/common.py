"""What the benchmarks share: shapes of models, timing, the machine's matmul peak, and how results are shown."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from a3jax.commands.commandline import parse
from a3jax.config import ModelConfig
from a3jax.errors import UserError

MODELS = {
    "tiny": ModelConfig("llama", 512, 64, 128, 2, 4, 2, 16, 2048),
    "llama_6m": ModelConfig("llama", 4096, 256, 768, 7, 4, 2, 64, 2048, tied_head=True),
    "smollm2_135m": ModelConfig("llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, rope_theta=1e5, tied_head=True),
    "llama_1b": ModelConfig("llama", 128256, 2048, 8192, 16, 32, 8, 64, 8192, rope_theta=5e5, tied_head=True),
}
"""Shapes only; weights are random."""


def run(main: Callable[[Any], None], options: type) -> None:
    """Parse the command line as `options` and run `main` with them; a mistake is one line and exit status 2."""
    try:
        main(parse(options, sys.argv[1:], sys.argv[0]))
    except UserError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        sys.exit(2)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median time of `run`, whose result is waited for, after one call that is not counted."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def matmul_peak(dtype: str, size: int | None = None) -> float:
    """FLOP/s of the best of ten square matrix products: what this machine can do at most."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # on zeros and ones some machines are faster
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def show(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table, with the machine and the versions; or the same as one JSON object, the last line."""
    device = jax.devices()[0]
    facts = {
        "device": f"{len(jax.devices())} x {device.device_kind} ({processor()})",
        "jax": jax.__version__,
        "command": " ".join([*_environment(), "python", *sys.argv]),
    }
    if as_json:
        print(json.dumps({"title": title, **facts, "rows": rows}))
        return
    table = Table(title=title, title_justify="left", caption=", ".join(facts.values()), caption_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def _environment() -> list[str]:
    """What was set outside the command and matters to its speed."""
    return [f"{name}={os.environ[name]}" for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ]


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
