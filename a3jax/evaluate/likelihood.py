"""Exact likelihood of token windows in any generation order, by teacher forcing.

The order is data, so one compiled program serves every order family and group size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from a3jax.config import ModelConfig, Seeding
from a3jax.curriculum.stage import HeldOutOrder, parse_order
from a3jax.devices.context_parallel import spread
from a3jax.model.two_stream import Compute, TwoStream, sort
from a3jax.ordering import Order, draw_order, example_keys
from a3jax.train.loss import token_nll

ORDERS: tuple[HeldOutOrder, ...] = get_args(HeldOutOrder)
PARTS = 4
"""Of an order, and of a window."""


class Nll(NamedTuple):
    """Nats per predicted token, of all tokens and of parts of them; None where a part has none."""

    nll: float
    nll_by_rank: tuple[float | None, ...]
    """By the quarter of its document's order in which a token comes."""
    nll_by_visible: tuple[float | None, ...]
    """By how much of a window a token sees, in quarters of the window's length."""


def log_probs(
    network: TwoStream, tokens_BxL: Array, order: Order, how: Compute, one_stream: bool = False, chunk: int = 1024
) -> Array:
    """log p of every token in nats, B x L float32 in window order; zero where a token is given or padding.

    With `one_stream`, which is for orders that `left_to_right` knows, the content stream does the work of both. `chunk`
    counts rows of one device whose logits exist at one time.
    """
    target_BxL, predicted_BxL = sort(tokens_BxL, order.token_index), order.predicted
    if one_stream:  # a slot's content predicts the token of the next
        target_BxL, predicted_BxL = (jnp.roll(x, -1, axis=1) for x in (target_BxL, predicted_BxL))
    order = jax.tree.map(spread, order)
    hidden_BxLxD = (network.content_hidden if one_stream else network.query_hidden)(tokens_BxL, order, how)
    nll_BxL = token_nll(hidden_BxLxD, network.output_matrix[...], spread(target_BxL), chunk)
    log_prob_BxL = jnp.where(spread(predicted_BxL), -nll_BxL, 0.0)
    log_prob_BxL = sort(log_prob_BxL, jnp.argsort(order.token_index, axis=1))
    return jnp.roll(log_prob_BxL, 1, axis=1) if one_stream else log_prob_BxL


def single_stream(order: str, seeding: Seeding) -> bool:
    """Whether the content stream predicts what the query stream would, one slot later: from left to right, one by one."""
    return parse_order(order) == ("in_order", 1) and seeding == "successor"


def left_to_right(order: Order, length: int) -> bool:
    """Whether an order, L, takes a text of so many tokens one by one as it stands, whichever of them are given."""
    place = np.arange(length)
    return all(np.array_equal(x_L[:length], place) for x_L in (order.token_index, order.group_start))


class HeldOut:
    """Held-out windows, and NLL on them by order."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        model: ModelConfig,
        windows: dict[str, np.ndarray],
        how: Compute,
        batch: int,
        put: Callable[[np.ndarray], Array] = jnp.asarray,
    ):
        count = len(windows["tokens"])
        pad = -count % batch
        self._batches = [
            {k: put(np.pad(v, ((0, pad), (0, 0)))[i : i + batch]) for k, v in windows.items()} for i in range(0, count, batch)
        ]
        self._keys = [example_keys(0, 0, count + pad)[i : i + batch] for i in range(0, count, batch)]
        self._model = model
        self._sums = functools.partial(_sums, graph, how)
        self._draw = jax.jit(draw_order, static_argnames=("family", "group_size", "given", "seeding"))

    def nll(self, params: nnx.State, orders: tuple[str, ...] = ORDERS) -> dict[str, Nll]:
        """The NLL in each named order, empty without windows. A window's order is always the same, whatever the batch."""
        if not self._batches:
            return {}
        return {name: self._one(params, name) for name in orders}

    def _one(self, params: nnx.State, name: str) -> Nll:
        family, group_size = parse_order(name)
        seeding = self._model.seeding
        found = []
        for keys, batch in zip(self._keys, self._batches):
            order = self._draw(keys, batch["segments"], family=family, group_size=group_size, given=0.0, seeding=seeding)
            found.append(self._sums(params, batch["tokens"], order, one_stream=single_stream(name, seeding)))
        found = jax.device_get(found)
        rank, visible = (np.array([each[name] for each in found], np.float64).sum(0) for name in ("rank", "visible"))
        total, count = rank.sum(0)
        by_rank, by_visible = (tuple(nll / n if n else None for nll, n in part.tolist()) for part in (rank, visible))
        return Nll(float(total / max(1, count)), by_rank, by_visible)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="one_stream")
def _sums(
    graph: nnx.GraphDef, how: Compute, params: nnx.State, tokens_BxL: Array, order: Order, one_stream: bool
) -> dict[str, list[tuple[Array, Array]]]:
    """NLL and number of the tokens of every part. Compiled once a process, for all who evaluate the same model."""
    nll_BxL = sort(-log_probs(nnx.merge(graph, params), tokens_BxL, order, how, one_stream), order.token_index)
    return {
        name: [(jnp.where(here, nll_BxL, 0).sum(), here.sum()) for here in (part_BxL == i for i in range(PARTS))]
        for name, part_BxL in _parts(order).items()
    }


def _parts(order: Order) -> dict[str, Array]:
    """Which part a slot belongs to, by its rank and by what it sees, B x L; -1 where nothing is predicted."""
    length = order.start.shape[1]
    document_BxL = jax.vmap(lambda start_L: jnp.bincount(start_L, length=length)[start_L])(order.start)
    rank_BxL = (jnp.arange(length) - order.start) * PARTS // document_BxL
    visible_BxL = (order.group_start - order.start) * PARTS // length
    return {name: jnp.where(order.predicted, part, -1) for name, part in (("rank", rank_BxL), ("visible", visible_BxL))}
