"""Time and memory of attention, both streams, forward and backward: each path against the dense one and against L.

python benchmarks/attention.py --lengths 1024 4096 --group-sizes 1 8
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import run, seconds, show

from a3jax.attention import attend
from a3jax.config import AttentionPath
from a3jax.ordering import draw_order, example_keys


@dataclass(frozen=True)
class Options:
    """Time and memory of attention, both streams, forward and backward.

    python benchmarks/attention.py --lengths 1024 4096 --group-sizes 1 8
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    group_sizes: tuple[int, ...] = (1, 8, 64)
    batch: int = 1
    query_heads: int = 9
    kv_heads: int = 3
    head_width: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    implementations: tuple[AttentionPath, ...] = ("dense", "auto")
    """The first is what the others are compared with."""
    repeats: int = 3
    json: bool = False


def compiled(options: Options, length: int, group_size: int, implementation: AttentionPath) -> tuple[Callable[[], Any], int]:
    """What runs forward and backward, and its bytes of temporaries."""
    segment_BxL = jnp.ones((options.batch, length), jnp.int32)
    order = draw_order(example_keys(0, 0, options.batch), segment_BxL, "random", group_size, 0.0, "successor")
    start_BxR = jnp.concatenate([order.start, order.start], axis=1)
    end_BxR = jnp.concatenate([order.group_end, order.group_start], axis=1)
    draw = np.random.default_rng(0)

    def normal(rows: int, heads: int) -> jax.Array:
        return jnp.asarray(draw.standard_normal((options.batch, rows, heads, options.head_width)), options.dtype)

    query, key, value = (
        normal(2 * length, options.query_heads),
        normal(length, options.kv_heads),
        normal(length, options.kv_heads),
    )

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        out = attend(query, key, value, start_BxR, end_BxR, implementation)
        return (out.astype(jnp.float32) ** 2).sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(query, key, value).compile()
    memory: Any = program.memory_analysis()
    return lambda: program(query, key, value), memory.temp_size_in_bytes


def main(options: Options) -> None:
    """Measure every length, group size and path, and show them."""
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        for group_size in options.group_sizes:
            base = None
            for implementation in options.implementations:
                program, memory = compiled(options, length, group_size, implementation)
                time = seconds(program, options.repeats)
                base = base or time
                row = {"L": length, "S": group_size, "path": implementation, "seconds": time}
                rows.append(row | {f"times {options.implementations[0]}": base / time, "MiB of temporaries": memory / 2**20})
    heads = f"{options.query_heads} query and {options.kv_heads} key-value heads of {options.head_width}"
    show(f"Attention, both streams, forward and backward, B {options.batch}, {heads}, {options.dtype}", rows, options.json)


if __name__ == "__main__":
    run(main, Options)
