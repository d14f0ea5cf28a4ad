"""One of each collective over 8 simulated devices, inside a loop of 5; run by test_costs.py in a process of its own.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python collectives_process.py OUT.hlo
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

AXES = {"data": 2, "model": 4}
TRIPS, SIZE = 5, 1024
"""Trips of the loop, and float32 numbers that each device holds."""


def step(x, _):
    whole = jax.lax.all_gather(x, "model", tiled=True)
    x = x + jax.lax.psum_scatter(whole, "model", tiled=True)
    x = x + jax.lax.psum(jnp.sin(x), "data")
    x = x + jax.lax.all_to_all(jnp.cos(x).reshape(4, -1), "model", 0, 0, tiled=True).reshape(-1)
    return x + jax.lax.ppermute(jnp.tanh(x), "model", [(0, 1), (1, 2), (2, 3), (3, 0)]), None


if __name__ == "__main__":
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * 2)
    many = jax.shard_map(
        lambda x: jax.lax.scan(step, x, None, length=TRIPS)[0],
        mesh=mesh,
        in_specs=P(("data", "model")),
        out_specs=P(("data", "model")),
        check_vma=False,
    )
    compiled = jax.jit(many).lower(jax.ShapeDtypeStruct((8 * SIZE,), jnp.float32)).compile()
    Path(sys.argv[1]).write_text(compiled.as_text())
