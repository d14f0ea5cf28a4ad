"""Likelihood evaluation from text to report, against the bare training forward with its loss, in tokens a second.

python benchmarks/evaluation.py CHECKPOINT
"""

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import run, show
from tyro.conf import Positional, arg

import a3jax
from a3jax.commands.commandline import Text
from a3jax.curriculum.stage import Stage, parse_order
from a3jax.evaluate.by_order import ByOrder
from a3jax.evaluate.evaluation import evaluate
from a3jax.evaluate.texts import read_texts
from a3jax.likelihood.scoring import BATCH
from a3jax.ordering import example_keys
from a3jax.train.objectives.any_order import AnyOrder


@dataclass(frozen=True)
class Options:
    """Likelihood evaluation from text to report, against the bare training forward with its loss, in tokens a second.

    python benchmarks/evaluation.py demo/smollm2 --windows 32
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    text: Text = None
    """What is evaluated; the source of Python's standard library if not given."""
    order: str = "random_4"
    windows: int = 32
    length: int = 512
    """Tokens of a window."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 2
    json: bool = False


def evaluation(options: Options, model: a3jax.Model) -> int:
    """What `a3jax evaluate --tasks likelihood --out` does once the model is there. Returns the tokens of all windows."""
    source, texts = read_texts(options.text, "text", "train", ("*",), 0, False, Counter())
    task = ByOrder(model, source, texts, Counter(), [options.order], options.length, options.windows)
    with tempfile.TemporaryDirectory() as out:
        evaluate([task], {"model": model}, Path(out), BATCH)
    return sum(item.length for item in task.items)


def forward(options: Options, model: a3jax.Model) -> int:
    """As many batches as evaluation has, of as many windows each, none of them padded. Returns their tokens."""
    tokens_BxL = np.random.default_rng(0).integers(0, model.config.vocab, (BATCH, options.length), np.int32)
    batch = {"tokens": jnp.asarray(tokens_BxL), "segments": jnp.ones_like(tokens_BxL)}
    objective = AnyOrder(model.config, Stage(1, *parse_order(options.order)), model.compute, 1024)
    keys_B = example_keys(0, 0, BATCH)
    passes = math.ceil(options.windows / BATCH)
    for _ in range(passes):
        jax.block_until_ready(_sums(objective, model.params, batch, keys_B))
    return passes * tokens_BxL.size


_sums = jax.jit(AnyOrder.sums, static_argnums=0)


def rates(step: Callable[[], int]) -> tuple[float, float]:
    """Tokens a second, and a second of this process's CPU time."""
    begun, used = time.perf_counter(), time.process_time()
    tokens = step()
    return tokens / (time.perf_counter() - begun), tokens / (time.process_time() - used)


def main(options: Options) -> None:
    """Measure one after the other, so that both see the same machine, and show medians."""
    model = a3jax.load(options.checkpoint, options.dtype)
    steps = {"training forward and loss": lambda: forward(options, model), "evaluation": lambda: evaluation(options, model)}
    for step in steps.values():
        step()  # compiles
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            found[name].append(rates(step))
    median = {name: [statistics.median(column) for column in zip(*each)] for name, each in found.items()}
    wall, used = median["training forward and loss"]
    rows: list[dict[str, Any]] = [
        {"what": name, "tokens / s": by_wall, "of the forward": by_wall / wall,
         "tokens / CPU s": by_used, "of the forward's": by_used / used}
        for name, (by_wall, by_used) in median.items()
    ]  # fmt: skip
    title = (
        f"{options.windows} windows, B {BATCH}, L {options.length}, {options.order}, {options.dtype}, {options.checkpoint}"
    )
    show(title, rows, options.json)


if __name__ == "__main__":
    run(main, Options)
