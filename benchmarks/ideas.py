"""Small changes to the method, each tried against the same run without it (docs/ideas.md).

python benchmarks/ideas.py run                  # after the commands of experiments/duel_base.py, or those of docs/ideas.md
python benchmarks/ideas.py run 'adapters, two-sided seed' --seed 1         # with another seed, and the same without
python benchmarks/ideas.py run 'adapters, two-sided seed' --steps 1000     # longer
python benchmarks/ideas.py table
python benchmarks/ideas.py pieces data/unseen                             # of text that experiments/two_sided.py does not see
python benchmarks/ideas.py zero_shot models/smollm2 models/smollm2-code    # both rules of content, untrained

Every arm adapts the base of the duel with the same windows, the same draws of orders and the same number of steps, at the
learning rate that is best of `RATES` for the arm without changes. What comes of it is NLL on files of packages that the base
has not seen, by order. Some of the changes are tried here alone; a place in the trainer is to be earned:

*A free loss.* A content row at t knows x_t and is, if it sees nothing of x_{t+1}, a query for it. Its last layer and its
logits are computed too, and their loss is added.

*Seeds from near by.* A query for x_t starts from x_{t-1} where that is decided. Here what is decided next to it on the right,
and further on the left where x_{t-1} is not, is added: W times its embedding, a W for each side and distance, zero at first.
Such a query is not causal, so nothing from left to right changes. The two-sided seed has x_{t+1} alone.

*Queries in the upper half.* Query rows enter at half of the layers, where they start from what the content row of x_{t-1} is
there, or from a learned vector: half of their arithmetic.

*The surest first.* Groups of 4 are not random: first come the tokens that the source is surest of, as dynamic decoding has
it.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import random
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from prompts import own_sources

import a3jax
from a3jax.checkpoint.folder import find, load_params
from a3jax.config import AdaptConfig, Content, DataConfig, OptimizerConfig
from a3jax.curriculum.stage import Part
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.data.tokenizer import load_codec
from a3jax.likelihood.fused_loss import nll_sum, token_nll
from a3jax.model.adapters import content_is_fixed
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Beside, Compute, Stream, TwoStream
from a3jax.ordering import Order, arrange, draw_mixture, example_keys, gather
from a3jax.train.optimizer import make_optimizer, schedule
from a3jax.train.trained import changes

BASE, CORPUS = Path("runs/duel_base"), "data/duel/train"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RESULTS = EXPERIMENTS / "results" / "ideas.jsonl"
STEPS, BATCH, WINDOWS, CHUNK = 200, 4, 48, 1024
RATES = (1e-3, 3e-3)
ORDERS = ("ar", "in_order_4", "random_1", "random_4", "infill_4")
SURE = "sure_4"
"""The tokens that the base is surest of first, four at a time."""
HOW = Compute(attention="dense")


@dataclass(frozen=True)
class Arm:
    """What is changed of an adaptation in random groups of 4."""

    rank: int = 0
    """Of adapters; 0 trains all weights."""
    content: Content = "group"
    given: float = 0.0
    free: float = 0.0
    """The weight of the free loss."""
    left: int = 0
    """Seeds from the left, 2 to 1 + this many tokens away, where x_{t-1} is not decided."""
    right: int = 0
    """Seeds from the right, 1 to this many tokens away."""
    rooted: bool = False
    """What these seeds add is divided by the root of the width, as in `TwoStream`: a step of Adam changes it less."""
    upper: bool = False
    """Queries are in the upper half of the layers alone."""
    sure: bool = False
    """The surest come first."""
    optimizer: Literal["adamw", "muon"] = "adamw"


CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    ", content up to its slot": {"content": "slot"},
    ", two-sided seed": {"right": 1},
    ", two-sided seed over the root of the width": {"right": 1, "rooted": True},
    ", seeds from 5 on the left": {"left": 4},
    ", seeds from 5 on the left and 4 on the right": {"left": 4, "right": 4},
    ", given up to 0.9": {"given": 0.9},
    ", free loss": {"free": 1.0},
    ", queries in the upper half": {"upper": True},
    ", the surest first": {"sure": True},
    ", Muon": {"optimizer": "muon"},
}
ARMS = {
    f"{what}{change}": dataclasses.replace(arm, **changed)
    for what, arm in (("adapters", Arm(rank=16)), ("all weights", Arm()))
    for change, changed in CHANGES.items()
    if not (arm.rank and "free" in changed)  # a fixed content stream has nothing to learn
    and not (not arm.rank and "upper" in changed)
}


class Rows(NamedTuple):
    """Hidden states of rows and the tokens that they predict, B x R, with the weight of each."""

    hidden: Array
    target: Array
    weight: Array


class _Unnormalized(TwoStream):
    """The lower layers of a network: what they return are hidden states as the next layer takes them."""

    def _normalize(self, x_BxRxD: Array) -> Array:
        return x_BxRxD


def half(net: TwoStream, layers: slice, kind: type[TwoStream]) -> TwoStream:
    """Some layers of a network, with all else that it has."""
    state = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    blocks = jax.tree.map(lambda x: x[layers], state["blocks"])
    config = dataclasses.replace(net.config, layers=len(range(net.config.layers)[layers]))
    result = nnx.eval_shape(lambda: kind(config, nnx.Rngs(0)))
    nnx.update(result, state | {"blocks": blocks})
    return result


def at_half(net: TwoStream, content: Stream) -> Array:
    """What the content rows of a fixed content stream are at half of the layers, in slot order."""
    lower = half(net, slice(net.config.layers // 2), _Unnormalized)
    return jax.lax.stop_gradient(lower.run(content, None, HOW)[0])


def upper_half(net: TwoStream, seed_D: Array, content: Stream, order: Order) -> Array:
    """The normalized last hidden states of queries that enter at half of the layers, in slot order."""
    upper = half(net, slice(net.config.layers // 2, None), TwoStream)
    middle_BxLxD = at_half(net, content)
    slot_BxL = gather(jnp.argsort(order.token_index, axis=1), jnp.maximum(order.predecessor, 0))
    before_BxLxD = jnp.take_along_axis(middle_BxLxD, slot_BxL[..., None], axis=1)
    seeds_BxLxD = jnp.where(order.query.known[..., None], before_BxLxD, seed_D)
    queries = Stream(seeds_BxLxD, order.query.position, order.start, order.group_start, ~order.query.causal)
    known = upper.run_content(content._replace(embedding=middle_BxLxD), HOW)
    return upper.run_queries(queries, jax.lax.stop_gradient(known), HOW)[0]


def left_to_right(net: TwoStream, tokens_BxL: Array, segment_BxL: Array) -> Stream:
    """The content rows of a plain autoregressive model; every token's slot is its place in the window."""
    order = draw_mixture(example_keys(0, 0, len(tokens_BxL)), segment_BxL, (Part.named("ar"),), net.config.seeding)
    return net.content_stream(tokens_BxL, order.position, order.start, order.group_end, HOW)


def surest_first(net: TwoStream, tokens_BxL: Array, segment_BxL: Array) -> Order:
    """The order of groups of 4 in which the tokens come first whose distribution, from left to right, is the surest."""
    content = left_to_right(net, tokens_BxL, segment_BxL)
    log_probs_BxLxV = jax.nn.log_softmax(net.logits(net.run(content, None, HOW)[0]))
    first_BxL = content.position == 0
    sure_BxL = jnp.where(first_BxL, 0, jnp.roll(log_probs_BxLxV.max(-1), 1, axis=1))
    same_BxLxL = (segment_BxL[:, None] == segment_BxL[..., None]) & ~first_BxL[:, None]
    rank_BxL = (same_BxLxL & (sure_BxL[:, None] > sure_BxL[..., None])).sum(-1)
    group_BxL = jnp.where(first_BxL, -1, rank_BxL // 4)
    return jax.vmap(lambda *of_one: arrange(*of_one, net.config.seeding))(group_BxL, first_BxL, segment_BxL)


def predictions(
    net: TwoStream, extra: dict[str, Array], arm: Arm, tokens_BxL: Array, segment_BxL: Array, order: Order
) -> tuple[Rows, Rows | None]:
    """Those of queries, and of content rows where there is a free loss; in slot order."""
    (length,) = tokens_BxL.shape[1:]
    read_BxL, end_BxL = gather(tokens_BxL, order.token_index), order.content_end(arm.content)
    content = net.content_stream(read_BxL, order.position, order.start, end_BxL, HOW)
    predecessor_BxL = gather(tokens_BxL, jnp.maximum(order.predecessor, 0))
    queries = net.query_stream(Beside(predecessor_BxL, predecessor_BxL), order.query, order.start, order.group_start, HOW)
    next_BxL = jnp.minimum(order.token_index + 1, length - 1)
    follows_BxL = (next_BxL > order.token_index) & (gather(segment_BxL, next_BxL) == gather(segment_BxL, order.token_index))
    next_slot_BxL = gather(jnp.argsort(order.token_index, axis=1), next_BxL)
    next_token_BxL = gather(tokens_BxL, next_BxL)
    for (place_BxL, known_BxL), near_DxD in zip(nearby(arm, order, segment_BxL), extra["near_PxDxD"], strict=True):
        added_BxLxD = net.embed(gather(tokens_BxL, place_BxL), HOW) @ near_DxD
        if arm.rooted:
            added_BxLxD /= net.config.width**0.5
        queries = queries._replace(embedding=queries.embedding + jnp.where(known_BxL[..., None], added_BxLxD, 0))
    if arm.upper:
        hidden_BxLxD = upper_half(net, extra["seed_D"], content, order)
    elif content_is_fixed(net.config):
        hidden_BxLxD, _ = net.run_queries(queries, jax.lax.stop_gradient(net.run_content(content, HOW)), HOW)
    else:
        hidden_BxLxD, _ = net.run(content, queries, HOW)
    asked = Rows(hidden_BxLxD, read_BxL, order.predicted.astype(jnp.float32))
    if not arm.free:
        return asked, None
    unseen_BxL = follows_BxL & (next_slot_BxL >= end_BxL)
    weight_BxL = arm.free * unseen_BxL * gather(order.predicted, next_slot_BxL)
    # The content stream is run once more, for its last layer alone: simple, and no matter here.
    return asked, Rows(net.run(content, None, HOW)[0], next_token_BxL, weight_BxL)


def nearby(arm: Arm, order: Order, segment_BxL: Array) -> Iterator[tuple[Array, Array]]:
    """For every side and distance that seeds: where the nearest decided token stands, and if it is so far away, B x L."""
    (length,) = segment_BxL.shape[1:]
    place_L, own_BxL = jnp.arange(length), order.token_index
    slot_BxL = jnp.argsort(own_BxL, axis=1)
    seen_BxLxL = slot_BxL[:, None] < order.group_start[..., None]
    seen_BxLxL &= segment_BxL[:, None] == gather(segment_BxL, own_BxL)[..., None]
    before_BxL = jnp.where(seen_BxLxL & (place_L < own_BxL[..., None]), place_L, -1).max(-1)
    behind_BxL = jnp.where(seen_BxLxL & (place_L > own_BxL[..., None]), place_L, length).min(-1)
    for distance in range(2, 2 + arm.left):
        yield jnp.maximum(before_BxL, 0), (before_BxL >= 0) & (own_BxL - before_BxL == distance)
    for distance in range(1, 1 + arm.right):
        yield jnp.minimum(behind_BxL, length - 1), (behind_BxL < length) & (behind_BxL - own_BxL == distance)


def adapted(arm: Arm, rate: float, seed: int = 0, steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """What an arm comes to before its first step and after its last."""
    base = find(BASE)
    adapt = AdaptConfig(rank=arm.rank)
    model = dataclasses.replace(base.config, content=arm.content, adapter_rank=arm.rank)
    net = TwoStream(model, nnx.Rngs(seed))
    nnx.update(net, load_params(base))
    changed, frozen = nnx.split_state(nnx.state(net, nnx.Param), changes(adapt, model), ...)
    data = DataConfig(path=CORPUS, length=model.context, batch=BATCH)
    batches = Batches(open_corpora(data), data, steps, seed)
    extra = {"near_PxDxD": jnp.zeros((arm.left + arm.right, model.width, model.width))}
    if arm.upper:  # seeds begin as the mean, as they do below
        first = jax.tree.map(jnp.asarray, dict(batches[0]))
        extra["seed_D"] = at_half(net, left_to_right(net, first["tokens"], first["segments"])).mean((0, 1))
    trained = changed, {name: x for name, x in extra.items() if len(x)}
    part = None if arm.sure else Part(family="random", group_size=4, given=arm.given)
    settings = OptimizerConfig(warmup=20, name=arm.optimizer)
    optimizer = make_optimizer(settings, schedule(settings, rate, steps))

    def rows(trained: Any, batch: dict[str, Array], order: Order) -> tuple[Rows, Rows | None, Array]:
        changed, own = trained
        net = nnx.merge(graph(model), nnx.merge_state(changed, frozen))
        return *predictions(net, extra | own, arm, batch["tokens"], batch["segments"], order), net.output_matrix

    @jax.jit
    def step(trained: Any, moments: Any, batch: dict[str, Array], number: Array) -> tuple[Any, Any]:
        order = arranged(source, part, batch, example_keys(seed, number, BATCH))

        def loss(trained: Any) -> Array:
            asked, free, head_VxD = rows(trained, batch, order)
            total = jnp.zeros(())
            for one in (asked, free):
                if one is not None:
                    total += nll_sum(one.hidden, head_VxD, one.target, one.weight, CHUNK)
            return total / jnp.maximum(1, order.predicted.sum())

        updates, moments = optimizer.update(jax.grad(loss)(trained), moments, trained)
        return optax.apply_updates(trained, updates), moments

    def figures(done: int) -> dict[str, Any]:
        return {
            "steps": done,
            "nll": {name: _held_out(functools.partial(rows, trained), source, name) for name in (*ORDERS, SURE)},
        }

    source = TwoStream(base.config, nnx.Rngs(0))
    nnx.update(source, load_params(base))
    if arm in (Arm(rank=arm.rank), Arm(rank=arm.rank, content="slot")):  # others begin as one of these
        yield figures(0)
    moments = optimizer.init(trained)
    for number in range(steps):
        trained, moments = step(trained, moments, batches[number], jnp.int32(number))
    yield figures(steps)


def arranged(source: TwoStream, part: Part | None, batch: dict[str, Array], keys_B: Array) -> Order:
    """The order of windows as a part of a mixture draws it, or with the surest first."""
    if part is None:
        return surest_first(source, batch["tokens"], batch["segments"])
    return draw_mixture(keys_B, batch["segments"], (part,), source.config.seeding)


def _held_out(rows: Callable, source: TwoStream, name: str) -> list[list[float]]:
    """Nats and predicted tokens of every dev window in an order."""
    tokens_WxL = dev_windows(source.config.context)
    segment_WxL, keys_W = jnp.ones_like(tokens_WxL), example_keys(0, 0, len(tokens_WxL))

    @jax.jit
    def one(batch: dict[str, Array], keys_B: Array) -> tuple[Array, Array]:
        order = arranged(source, None if name == SURE else Part.named(name), batch, keys_B)
        queries, _, head_VxD = rows(batch, order)
        nll_BxL = token_nll(queries.hidden, head_VxD, queries.target, CHUNK)
        return (nll_BxL * queries.weight).sum(1), queries.weight.sum(1)

    found = []
    for begin in range(0, WINDOWS, 16):
        here = slice(begin, begin + 16)
        found += np.stack(one({"tokens": tokens_WxL[here], "segments": segment_WxL[here]}, keys_W[here]), axis=1).tolist()
    return found


@functools.cache
def dev_windows(length: int) -> Array:
    """A window from the middle of each of `WINDOWS` files of the duel's dev packages, W x L."""
    folders = runpy.run_path(str(EXPERIMENTS / "duel_base.py"))["folders"]
    codec = load_codec(BASE)
    files = sorted(file for folder in folders("dev") for file in Path(folder).rglob("*.py"))
    texts = (codec.encode(file.read_text(errors="replace")) for file in random.Random(0).sample(files, len(files)))
    long = itertools.islice((text for text in texts if len(text) >= length), WINDOWS)
    return jnp.array([[codec.start, *text[(len(text) - length) // 2 :][: length - 1]] for text in long])


def run(names: list[str], seed: int, steps: int) -> None:
    """Every arm that is not there yet, or those of these names; the ones without changes first.

    With seed 0 and `STEPS` steps they choose the learning rates.
    """
    if strangers := set(names) - set(ARMS):
        print(f"{strangers.pop()} is none of: {'; '.join(ARMS)}", file=sys.stderr)
        sys.exit(2)
    wanted = {*names, *(name.partition(",")[0] for name in names)} or set(ARMS)
    RESULTS.parent.mkdir(exist_ok=True)
    for name, arm in ARMS.items():
        if name not in wanted:
            continue
        plain = name.partition(",")[0]
        for rate in RATES if name == plain and (seed, steps) == (0, STEPS) else [chosen(plain)]:
            if (name, rate, seed, steps) in {
                tuple(line[key] for key in ("arm", "rate", "seed", "steps")) for line in lines()
            }:
                continue
            for figures in adapted(arm, rate, seed, steps):
                if figures["steps"] or steps == STEPS:
                    with RESULTS.open("a") as file:
                        print(json.dumps({"arm": name, "rate": rate, "seed": seed, **figures}), file=file)
            print(name, rate, {order: round(_nll(figures, order), 4) for order in ORDERS}, flush=True)


def lines() -> list[dict[str, Any]]:
    """All figures that are there."""
    return [{"seed": 0} | json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def chosen(plain: str) -> float:
    """The learning rate of arms like this one."""
    after = [line for line in lines() if (line["arm"], line["steps"], line["seed"]) == (plain, STEPS, 0)]
    return min(after, key=lambda line: _nll(line, "random_4"))["rate"]


def _nll(figures: dict[str, Any], order: str) -> float:
    nats, tokens = np.sum(figures["nll"][order], axis=0)
    return float(nats / tokens)


def table(longest: int) -> None:
    """A row for each arm: NLL, and for changes how far it is from the arm without, with the standard error over windows.

    Of several seeds figures are means, over those that both arms have.
    """
    rows = []
    for steps in (0, STEPS) if longest == STEPS else (longest,):
        for name in ARMS:
            plain = name.partition(",")[0]
            of_rate = [line for line in lines() if line["steps"] == steps and line["rate"] == chosen(plain)]
            own, other = ({line["seed"]: line for line in of_rate if line["arm"] == arm} for arm in (name, plain))
            if both := sorted(own.keys() & other.keys()):
                one, without = (_mean([each[seed] for seed in both]) for each in (own, other))
                cells = [_cell(one, without, order) for order in (*ORDERS, SURE)]
                rows.append((f"{name}{', step 0' if not steps else ''}", str(len(both)), *cells))
    columns = zip((f"nats per token after {longest} steps", "seeds", *ORDERS, SURE), *rows, strict=True)
    title, *table = zip(*(column for column in columns if any(column[1:])))
    for row in (title, ["---"] * len(title), *table):
        print(f"| {' | '.join(row)} |")


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of several seeds as those of one: windows and their tokens are the same."""
    common = [order for order in (*ORDERS, SURE) if all(order in one["nll"] for one in found)]
    return {**found[0], "nll": {order: np.mean([one["nll"][order] for one in found], axis=0) for order in common}}


def _cell(one: dict[str, Any], other: dict[str, Any], order: str) -> str:
    """Windows are pairs, and what is given of them may be drawn; each counts with its tokens. Empty if not measured."""
    if not (order in one["nll"] and order in other["nll"]):
        return ""
    if one["arm"] == other["arm"]:
        return f"{_nll(one, order):.3f}"
    nats, tokens = (
        (np.array(one["nll"][order]) - [1, 0] * np.array(other["nll"][order]))[:, 0],
        np.array(one["nll"][order])[:, 1],
    )
    mean = nats.sum() / tokens.sum()
    error = np.sqrt(np.square(nats - mean * tokens).sum()) / tokens.sum()
    return f"{mean:+.3f} ± {error:.3f}"


def zero_shot(models: list[str]) -> None:
    """NLL of pieces of this package's own source, by what content rows see, in models that were not trained for that."""
    print("| nats per token | order | content to its group's end | to its slot |\n|---|---|---|---|")
    for path in models:
        model = a3jax.load(path)
        texts = [model.codec.encode(file.read_text())[:192] for file in own_sources(8)]
        given = [[i == 0 for i in range(len(text))] for text in texts]
        for order in ("in_order_4", "random_1", "random_4"):
            found = []
            for content in get_args(Content):
                changed = dataclasses.replace(model, config=dataclasses.replace(model.config, content=content))
                scores = a3jax.token_log_likelihoods(changed, texts, given, order=order)
                found.append(np.array([(-score.total, len(score.tokens)) for score in scores]))
            group, slot = ({"arm": rule, "nll": {order: nll.tolist()}} for rule, nll in zip(get_args(Content), found))
            print(f"| {path} | {order} | {_cell(group, group, order)} | {_cell(slot, group, order)} |", flush=True)


def pieces(out: Path, count: int = 64, characters: int = 850) -> None:
    """Pieces of files of packages that experiments/two_sided.py does not train on, from the middle of each."""
    packages = Path(optax.__file__).parents[1]
    names = ("networkx", "nltk", "optax", "fontTools", "lm_eval")
    files = [file for name in names for file in sorted((packages / name).rglob("*.py")) if "test" not in str(file)]
    random.Random(0).shuffle(files)
    texts = (text for file in files if len(text := file.read_text(errors="replace")) >= 2500)
    out.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(itertools.islice(texts, count)):
        begin = text.index("\n", len(text) // 2 - 400) + 1
        (out / f"{number:03d}.py").write_text(text[begin : begin + characters])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table", "zero_shot", "pieces"])
    parser.add_argument("names", nargs="*", help="arms to run, models to measure untrained, or a folder for the pieces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    match options.command:
        case "run":
            run(options.names, options.seed, options.steps)
        case "table":
            table(options.steps)
        case "pieces":
            pieces(Path(options.names[0]))
        case _:
            zero_shot(options.names)
