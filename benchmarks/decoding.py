"""Decoding: the cache against recomputing everything, and forward passes per token of each mode, on real text.

python benchmarks/decoding.py CHECKPOINT --source FILE.py ...

The prompts are pieces of source files, `--prompt` tokens each, and every mode writes `--new` tokens behind them at
temperature 0. NLL is the exact one of the text written, left to right, under the same model.
"""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import run, show
from flax import nnx
from jax import Array
from tyro.conf import Positional, arg

import a3jax
from a3jax import Decoding, Template
from a3jax.config import ModelConfig
from a3jax.decode.cached import draw
from a3jax.errors import UserError
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import Order


@dataclass(frozen=True)
class Options:
    """Decoding: the cache against recomputing everything, and forward passes per token of each mode, on real text.

    python benchmarks/decoding.py demo/run --source a3jax/ordering.py a3jax/mesh.py
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    source: list[Path] = field(default_factory=lambda: sorted(Path("a3jax").glob("*.py"))[:4])
    """Text files; a prompt is taken from the middle of each."""
    prompt: int = 64
    """Tokens of a prompt."""
    new: int = 128
    """Tokens written behind it."""
    group_size: int = 4
    """Of the comparison with recomputing."""
    thresholds: tuple[float, ...] = (0.9, 0.7)
    """Of mode dynamic."""
    windows: tuple[int, ...] = (4, 32)
    """Of mode dynamic."""
    drafts: tuple[int, ...] = (4, 8)
    """Of mode speculative."""
    repeats: int = 3
    json: bool = False


def prompts(options: Options, model: a3jax.Model) -> list[str]:
    """A piece of each source, as text."""
    found = []
    for path in options.source:
        ids = model.codec.encode(path.read_text())
        if len(ids) < options.prompt:
            raise UserError(f"{path} has {len(ids)} tokens; a prompt needs {options.prompt}")
        begin = (len(ids) - options.prompt) // 2
        found.append(model.codec.decode(ids[begin : begin + options.prompt]))
    return found


def recompute(model: a3jax.Model, tokens: list[int], given: list[bool], order: str) -> list[int]:
    """Greedy decoding as it is without a cache: every group runs both streams over the whole text again."""
    drawn = draw(0, tokens, given, order, model.config.seeding)
    own = len(tokens)  # the text as it is: it is not made to pay for our padding
    order_1xL = jax.tree.map(lambda x_L: jnp.asarray(x_L[None, :own]), drawn.order)
    text_1xL = jnp.asarray([tokens], jnp.int32)
    starts = np.unique(drawn.order.group_start[:own][drawn.order.predicted[:own]])
    for start in starts:
        text_1xL = _whole_pass(model.params, text_1xL, order_1xL, int(start), model.fillable, model.config, model.how)
    return jax.device_get(text_1xL)[0].tolist()


@jax.jit(static_argnames=("config", "how"))
def _whole_pass(
    params: nnx.State, text_1xL: Array, order: Order, start: int, allowed_V: Array, config: ModelConfig, how: Compute
) -> Array:
    network = nnx.merge(graph(config), params)
    hidden_LxD = network.query_hidden(text_1xL, order, how)[0]
    logits_LxV = hidden_LxD @ network.output_matrix[...].T
    best_L = jnp.argmax(jnp.where(allowed_V, logits_LxV, -jnp.inf), axis=-1).astype(jnp.int32)
    here_L = (order.group_start[0] == start) & order.predicted[0]
    place_L = jnp.where(here_L, order.token_index[0], text_1xL.shape[1])
    return text_1xL.at[0, place_L].set(best_L, mode="drop")


def main(options: Options) -> None:
    """Both tables."""
    model = a3jax.load(options.checkpoint)
    texts = [Template((text, ""), (options.new,)) for text in prompts(options, model)]
    compare_with_recomputing(options, model, texts[0])
    modes = [Decoding()]
    modes += [Decoding(mode="speculative", drafts=drafts) for drafts in options.drafts]
    modes += [
        Decoding(mode="dynamic", threshold=threshold, window=window, commit=min(8, window))
        for threshold in options.thresholds
        for window in options.windows
    ]
    rows = [of_mode(model, texts, mode) for mode in modes]
    for row in rows:
        row["NLL / one by one"] = row["NLL"] / rows[0]["NLL"]
        row["seconds / one by one"] = row["seconds"] / rows[0]["seconds"]
    show(f"{len(texts)} texts, {options.prompt} + {options.new} tokens, {options.checkpoint}", rows, options.json)


def compare_with_recomputing(options: Options, model: a3jax.Model, text: Template) -> None:
    """Seconds for one text in groups, cached and not, the same tokens coming out."""
    order = f"in_order_{options.group_size}"
    cached = a3jax.infill(model, text, order=order)
    tokens = [token if known else 0 for token, known in zip(cached.tokens, cached.given)]
    if recompute(model, tokens, list(cached.given), order) != list(cached.tokens):
        print("the two differ in a token, by rounding")
    times: dict[str, list[float]] = {"cached": [], "recomputed": []}
    for _ in range(options.repeats):
        begun = time.perf_counter()
        a3jax.infill(model, text, order=order)
        times["cached"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        recompute(model, tokens, list(cached.given), order)
        times["recomputed"].append(time.perf_counter() - begun)
    median = {name: statistics.median(each) for name, each in times.items()}
    row: dict[str, Any] = {"order": order, "passes": cached.forwards}
    row |= {f"{name}, s": value for name, value in median.items()}
    row |= {"ms a cached pass": 1000 * median["cached"] / cached.forwards}
    row |= {"recomputed / cached": median["recomputed"] / median["cached"]}
    show("Groups with the cache, and recomputing everything for each", [row], options.json)


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
