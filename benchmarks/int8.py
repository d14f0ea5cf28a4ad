"""Weights in int8 against float32: seconds of one text, nats per token, and transformers' `generate` beside both.

python benchmarks/int8.py CHECKPOINT

The prompts are pieces of source files, and the same number of tokens is written behind each, greedily. All ways take turns,
so that what else happens on the machine happens to all of them.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from common import run, show
from prompts import Prompts, pieces
from self_drafting import in_transformers

import a3jax
from a3jax import Decoding, Template
from a3jax.checkpoint.folder import find
from a3jax.export.exporter import export_model


@dataclass(frozen=True)
class Options(Prompts):
    """Weights in int8 against float32: seconds of one text, nats per token, and transformers' `generate` beside both.

    python benchmarks/int8.py demo/run
    """

    orders: tuple[str, ...] = ("ar", "in_order_4")
    """In which they are written."""
    judged: tuple[str, ...] = ("ar", "in_order_4", "random_1", "random_4")
    """In which the nats of pieces of all sources are measured."""
    length: int = 512
    """Tokens of such a piece."""
    rounds: int = 5
    json: bool = False


def main(options: Options) -> None:
    """Seconds, and nats."""
    models = {dtype: a3jax.load(options.checkpoint, dtype) for dtype in ("float32", "int8")}
    whole = models["float32"]
    prompts = pieces(whole, options.source, options.prompt)
    with tempfile.TemporaryDirectory() as folder:
        export_model(find(options.checkpoint), Path(folder) / "source", style=whole.config.family)
        generate = in_transformers(Path(folder) / "source", whole, options.new)
    ways: dict[tuple[str, str], Callable[[str], int]] = {}
    for order in options.orders:
        ways |= {(order, dtype): _writes(model, order, options.new) for dtype, model in models.items()}
    ways["ar", "transformers"] = lambda text: generate(tuple(whole.codec.encode(text))).passes
    passes = {way: write(prompts[0]) for way, write in ways.items()}  # compiles
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for turn in range(options.rounds):
        for way, write in ways.items():
            begun = time.perf_counter()
            write(prompts[turn % len(prompts)])
            seconds[way].append(time.perf_counter() - begun)
    rows = []
    for (order, weights), taken in seconds.items():
        median, own = statistics.median(taken), seconds[order, "float32"]
        rows.append(
            {
                "order": order,
                "weights": weights,
                "ms a pass": 1000 * median / passes[order, weights],
                "tokens / s": options.new / median,
                "float32 / it": statistics.median(one / other for one, other in zip(own, taken)),
            }
        )
    shape = f"{options.prompt} + {options.new} tokens, {options.rounds} texts, {options.checkpoint}"
    show(f"One text at a time, {shape}", rows, options.json)
    nats = [_nats(models, order, pieces(whole, options.source, options.length)) for order in options.judged]
    show(f"Nats per token of {len(options.source)} pieces of {options.length} tokens", nats, options.json)
    stored = [{"weights": dtype, "MiB of weights": _mebibytes(model)} for dtype, model in models.items()]
    show("Memory", stored, options.json)


def _writes(model: a3jax.Model, order: str, new: int) -> Callable[[str], int]:
    how = Decoding(order=order, heal=False)
    return lambda text: a3jax.infill(model, Template((text, ""), (new,)), how).forwards


def _nats(models: dict[str, a3jax.Model], order: str, texts: list[str]) -> dict[str, Any]:
    found = {}
    for dtype, model in models.items():
        scores = [a3jax.log_likelihood(model, text, order) for text in texts]
        found[dtype] = -sum(score.total for score in scores) / sum(len(score.tokens) for score in scores)
    return {"order": order, **found, "int8 - float32": found["int8"] - found["float32"]}


def _mebibytes(model: a3jax.Model) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) / 2**20


if __name__ == "__main__":
    run(main, Options)
