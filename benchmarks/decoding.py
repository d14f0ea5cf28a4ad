"""Decoding: the cache against recomputing everything, and forward passes per token of each mode, on real text.

python benchmarks/decoding.py CHECKPOINT --source FILE.py ...

The prompts are pieces of source files, `--prompt` tokens each, and every mode writes `--new` tokens behind them at
temperature 0. NLL is the exact one of the text written, left to right, under the same model.
"""

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import run, show
from flax import nnx
from jax import Array
from prompts import Prompts, pieces

import a3jax
from a3jax import Decoding, Template
from a3jax.config import ModelConfig
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import Order
from a3jax.ordering.sequence import draw


@dataclass(frozen=True)
class Options(Prompts):
    """Decoding: the cache against recomputing everything, and forward passes per token of each mode, on real text.

    python benchmarks/decoding.py demo/run --source a3jax/ordering/arrange.py a3jax/devices/mesh.py
    """

    group_size: int = 4
    """Of the comparison with recomputing."""
    thresholds: tuple[float, ...] = (0.9, 0.7)
    """Of mode dynamic."""
    windows: tuple[int, ...] = (4, 32)
    """Of mode dynamic."""
    drafts: tuple[int, ...] = (4, 8)
    """Of mode speculative."""
    batches: tuple[int, ...] = (1, 4)
    """Texts at once, in the comparison with recomputing."""
    repeats: int = 3
    json: bool = False


def recompute(model: a3jax.Model, batch: int, tokens: list[int], given: list[bool], order: str) -> list[int]:
    """Greedy decoding as it is without a cache: every group runs both streams over the whole text again."""
    drawn = draw(0, tokens, given, order, model.config.seeding)
    own = len(tokens)  # the text as it is: it is not made to pay for our padding
    order_BxL = jax.tree.map(lambda x_L: jnp.tile(x_L[:own], (batch, 1)), drawn.order)
    text_BxL = jnp.tile(jnp.asarray(tokens, jnp.int32), (batch, 1))
    starts = np.unique(drawn.order.group_start[:own][drawn.order.predicted[:own]])
    for start in starts:
        text_BxL = _whole_pass(model.params, text_BxL, order_BxL, int(start), model.fillable, model.config, model.compute)
    return jax.device_get(text_BxL)[0].tolist()


@jax.jit(static_argnames=("config", "compute"))
def _whole_pass(
    params: nnx.State, text_BxL: Array, order: Order, start: int, allowed_V: Array, config: ModelConfig, compute: Compute
) -> Array:
    network = nnx.merge(graph(config), params)
    logits_BxLxV = network.logits(network.query_hidden(text_BxL, order, compute))
    best_BxL = jnp.argmax(jnp.where(allowed_V, logits_BxLxV, -jnp.inf), axis=-1).astype(jnp.int32)
    here_BxL = (order.group_start == start) & order.predicted
    place_BxL = jnp.where(here_BxL, order.token_index, text_BxL.shape[1])
    return text_BxL.at[jnp.arange(len(text_BxL))[:, None], place_BxL].set(best_BxL, mode="drop")


def main(options: Options) -> None:
    """Both tables."""
    model = a3jax.load(options.checkpoint)
    texts = [Template((text, ""), (options.new,)) for text in pieces(model, options.source, options.prompt)]
    rows = [compare_with_recomputing(options, model, texts[0], batch) for batch in options.batches]
    show("Groups with the cache, and recomputing everything for each", rows, options.json)
    modes = [Decoding(heal=False)]
    modes += [Decoding(mode="speculative", drafts=drafts, heal=False) for drafts in options.drafts]
    modes += [
        Decoding(mode="dynamic", threshold=threshold, window=window, commit=min(8, window), heal=False)
        for threshold in options.thresholds
        for window in options.windows
    ]
    rows = [of_mode(model, texts, mode) for mode in modes]
    for row in rows:
        row["NLL / one by one"] = row["NLL"] / rows[0]["NLL"]
        row["seconds / one by one"] = row["seconds"] / rows[0]["seconds"]
    show(f"{len(texts)} texts, {options.prompt} + {options.new} tokens, {options.checkpoint}", rows, options.json)


def compare_with_recomputing(options: Options, model: a3jax.Model, text: Template, batch: int) -> dict[str, Any]:
    """Seconds for `batch` times one text in groups, cached and not, the same tokens coming out."""
    order = f"in_order_{options.group_size}"

    def with_cache() -> a3jax.Infilled:
        return a3jax.infill_batch(model, [text] * batch, order=order, heal=False)[0]

    cached = with_cache()
    tokens = [token if known else 0 for token, known in zip(cached.tokens, cached.given)]
    without_cache = functools.partial(recompute, model, batch, tokens, list(cached.given), order)
    same = without_cache() == list(cached.tokens)
    times: dict[str, list[float]] = {"cached": [], "recomputed": []}
    for _ in range(options.repeats):
        for name, decode in (("cached", with_cache), ("recomputed", without_cache)):
            begun = time.perf_counter()
            decode()
            times[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "texts at once": batch,
        "order": order,
        "passes": cached.forwards,
        "same tokens": str(same),
        **{f"{name}, s": value for name, value in median.items()},
        "ms a cached pass": 1000 * median["cached"] / cached.forwards,
        "recomputed / cached": median["recomputed"] / median["cached"],
    }


def of_mode(model: a3jax.Model, texts: list[Template], decoding: Decoding) -> dict[str, Any]:
    """What one mode takes and gives, each text by itself."""
    a3jax.infill(model, texts[0], decoding)  # compiles
    begun = time.perf_counter()
    filled = [a3jax.infill(model, text, decoding) for text in texts]
    seconds = time.perf_counter() - begun
    scores = a3jax.token_log_likelihoods(model, [one.tokens for one in filled], [one.given for one in filled])
    count = sum(len(score.tokens) for score in scores)
    own = {"dynamic": f"threshold {decoding.threshold} window {decoding.window}", "speculative": f"{decoding.drafts} drafts"}
    return {
        "mode": decoding.mode if decoding.mode != "groups" else "one by one",
        "how": own.get(decoding.mode, decoding.order),
        "passes / token": sum(one.forwards for one in filled) / count,
        "NLL": -sum(score.total for score in scores) / count,
        "seconds": seconds,
    }


if __name__ == "__main__":
    run(main, Options)
