"""How programs are compiled: what is kept on disk, and the compiler's options."""

import os
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from a3jax.files.places import cache

CACHE_BYTES = 5 * 2**30
"""How large the cache on disk may grow before the programs used longest ago are dropped."""
WORTH_KEEPING = 0.1
"""Seconds that compiling a program took. JAX keeps what took a second, but a command has dozens of smaller ones; the smallest
of all would be files without end."""


def keep_compiled_programs() -> None:
    """Turn on JAX's cache of compiled programs, in ~/.cache/a3jax, so that the next start does not compile them again.

    `JAX_COMPILATION_CACHE_DIR` puts it elsewhere; `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


class Option(NamedTuple):
    """One option of XLA that is not what it would be by itself."""

    name: str
    value: str | bool
    reason: str


OPTIONS: dict[str, tuple[Option, ...]] = {
    "tpu": (
        Option(
            "xla_tpu_prefer_async_allgather_to_allreduce",
            True,
            "over 64 devices and more, libtpu gathers weights by an all-reduce of mostly zeros, which sends twice as much",
        ),
        Option(
            "xla_jf_spmd_threshold_for_windowed_einsum_mib",
            "1048576",
            "never: a product would be summed up from pieces of a gathered weight, each of which reads, writes and rounds "
            "all activations",
        ),
        Option(
            "xla_enable_async_all_gather", True, "weights are gathered while arithmetic runs; by itself only v5e and tpu7x do"
        ),
        Option("xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, "the same: without it the gathers wait"),
    ),
    "gpu": (
        Option("xla_gpu_enable_latency_hiding_scheduler", True, "collectives begin early, and arithmetic runs while they do"),
        Option("xla_gpu_enable_pipelined_all_gather", True, "a layer's weights are gathered while the layer before it runs"),
        Option("xla_gpu_enable_pipelined_all_reduce", True, "a layer's gradients are summed while the layer before it runs"),
        Option(
            "xla_gpu_enable_while_loop_double_buffering", True, "two layers a turn: the scan over layers hinders no overlap"
        ),
    ),
}
"""By platform. What is on by default is not listed: on TPUs the latency hiding scheduler and asynchronous collectives, on
GPUs asynchronous collectives and pipelined reduce-scatters. The GPU's are those that XLA's guide to optimization levels
(openxla.org/xla/gpu_optimization_levels) names for training over several devices."""


def options(mesh: Mesh) -> dict[str, str | bool]:
    """XLA's options for a program over `mesh`; none for one device, which has no communication to hide."""
    return {option.name: option.value for option in OPTIONS.get(mesh.devices.flat[0].platform, ()) if mesh.size > 1}
