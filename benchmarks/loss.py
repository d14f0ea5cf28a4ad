"""Memory and time of the loss and its gradients against the vocabulary: ours in chunks, and with all logits at once.

python benchmarks/loss.py --vocabularies 32000 128256
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import run, seconds, show

from a3jax.likelihood.fused_loss import nll_sum


@dataclass(frozen=True)
class Options:
    """Memory and time of the loss and its gradients against the vocabulary.

    python benchmarks/loss.py --vocabularies 32000 128256
    """

    vocabularies: tuple[int, ...] = (16000, 32000, 64000, 128000)
    rows: int = 2048
    width: int = 576
    chunk: int = 1024
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 3
    json: bool = False


def compiled(options: Options, vocab: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """What runs the loss, forward and backward, chunked and at once, and its bytes of temporaries."""
    draw = np.random.default_rng(0)
    hidden = jnp.asarray(draw.standard_normal((1, options.rows, options.width)), options.dtype)
    head = jnp.asarray(draw.standard_normal((vocab, options.width)) * 0.02, jnp.float32)
    target = jnp.asarray(draw.integers(0, vocab, (1, options.rows)))
    weight = jnp.ones((1, options.rows))

    def chunked(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return nll_sum(hidden, head, target, weight, options.chunk)

    def at_once(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logits = (hidden @ head.astype(hidden.dtype).T).astype(jnp.float32)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).sum()

    found: dict[str, tuple[Callable[[], Any], int]] = {}
    for name, function in (("chunked", chunked), ("at once", at_once)):
        program = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(hidden, head).compile()
        memory: Any = program.memory_analysis()
        found[name] = functools.partial(program, hidden, head), memory.temp_size_in_bytes
    return found


def main(options: Options) -> None:
    """Measure every vocabulary, and show it."""
    table: list[dict[str, Any]] = []
    for vocab in options.vocabularies:
        for name, (program, memory) in compiled(options, vocab).items():
            time = seconds(program, options.repeats)
            table.append({"V": vocab, "loss": name, "seconds": time, "MiB of temporaries": memory / 2**20})
    show(f"Loss and gradients, {options.rows} rows of width {options.width}, {options.dtype}", table, options.json)


if __name__ == "__main__":
    run(main, Options)
