"""Held-out NLL by order: of all tokens of held-out windows, and of parts of them."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.curriculum.stage import BOUND, HeldOutOrder, Part
from a3jax.likelihood.forward import bound, log_probs, one_stream_is_enough
from a3jax.model.network import Network
from a3jax.ordering import Order, draw_masking, draw_mixture, example_keys, gather

ORDERS: tuple[HeldOutOrder, ...] = get_args(HeldOutOrder)
PARTS = 4
"""Of an order, and of a window."""
DRAWS = 8
"""Of masks for every window, whose mean is the bound."""


class Nll(NamedTuple):
    """Nats per predicted token, of all tokens and of parts of them; None where a part has none."""

    nll: float
    nll_by_rank: tuple[float | None, ...]
    """By the quarter of its document's order in which a token comes."""
    nll_by_visible: tuple[float | None, ...]
    """By how much of a window a token sees, in quarters of the window's length."""


class Bound(NamedTuple):
    """An upper bound on the nats per token that may be masked."""

    nll: float
    """The mean of several draws of masks."""
    nll_error: float
    """Its Monte Carlo standard error."""


class HeldOut:
    """Held-out windows, and NLL on them by order; for masked diffusion (`mask_block`) from left to right, and the bound."""

    def __init__(
        self,
        windows: dict[str, np.ndarray],
        batch: int,
        put: Callable[[np.ndarray], Array] = jax.device_put,
        mask_block: int | None = None,
    ):
        count = len(windows["tokens"])
        pad = -count % batch
        self._batches = [
            {k: put(np.pad(v, ((0, pad), (0, 0)))[i : i + batch]) for k, v in windows.items()} for i in range(0, count, batch)
        ]
        self._keys = [example_keys(0, 0, count + pad)[i : i + batch] for i in range(0, count, batch)]
        self._figures = ORDERS if mask_block is None else ("ar", BOUND)
        self._bound_sums = functools.partial(_bound_sums, block=mask_block or 0)

    def nll(self, network: Network, orders: tuple[str, ...] | None = None) -> dict[str, Nll | Bound]:
        """The NLL in each named order, or in all; empty without windows.

        A window's order, and its masks, are always the same, whatever the batch.
        """
        if not self._batches:
            return {}
        names = self._figures if orders is None else orders
        return {name: self._bound(network) if name == BOUND else self._one(network, name) for name in names}

    def _bound(self, network: Network) -> Bound:
        found = [
            [self._bound_sums(network, batch["tokens"], batch["segments"], keys, draw) for draw in range(DRAWS)]
            for keys, batch in zip(self._keys, self._batches)
        ]
        total_D, count_D = np.moveaxis(np.array(jax.device_get(found), np.float64).sum(0), -1, 0)
        nll_D = -total_D / np.maximum(1, count_D)
        return Bound(float(nll_D.mean()), float(nll_D.std(ddof=1) / math.sqrt(DRAWS)))

    def _one(self, network: Network, name: str) -> Nll:
        kind = Part.named(name)
        one_stream = one_stream_is_enough(network.config, kind.is_ar)
        found = []
        for keys, batch in zip(self._keys, self._batches):
            order = draw_mixture(keys, batch["segments"], parts=(kind,), seeding=network.config.seeding)
            found.append(_sums(network, batch["tokens"], order, one_stream=one_stream))
        found = jax.device_get(found)
        rank, visible = (np.array([each[name] for each in found], np.float64).sum(0) for name in ("rank", "visible"))
        total, count = rank.sum(0)
        by_rank, by_visible = (tuple(nll / n if n else None for nll, n in part.tolist()) for part in (rank, visible))
        return Nll(float(total / max(1, count)), by_rank, by_visible)


@functools.partial(jax.jit, static_argnames="one_stream")
def _sums(network: Network, tokens_BxL: Array, order: Order, one_stream: bool) -> dict[str, list[tuple[Array, Array]]]:
    """NLL and number of the tokens of every part. Compiled once a process, for all who evaluate the same model."""
    nll_BxL = gather(-log_probs(network.module(), tokens_BxL, order, network.compute, one_stream), order.token_index)
    return {
        name: [(jnp.where(here, nll_BxL, 0).sum(), here.sum()) for here in (part_BxL == i for i in range(PARTS))]
        for name, part_BxL in _parts(order).items()
    }


@functools.partial(jax.jit, static_argnames="block")
def _bound_sums(
    network: Network, tokens_BxL: Array, segment_BxL: Array, keys_B: Array, draw: int, block: int
) -> tuple[Array, Array]:
    """One draw of the bound on the log-likelihood of windows, and the number of tokens that it is about."""
    masking = draw_masking(jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys_B), segment_BxL, block=block)
    return bound(network.module(), tokens_BxL, masking, network.compute).sum(), masking.predicted.sum()


def _parts(order: Order) -> dict[str, Array]:
    """Which part a slot belongs to, by its rank and by what it sees, B x L; -1 where nothing is predicted."""
    length = order.start.shape[1]
    document_BxL = jax.vmap(lambda start_L: jnp.bincount(start_L, length=length)[start_L])(order.start)
    rank_BxL = (jnp.arange(length) - order.start) * PARTS // document_BxL
    visible_BxL = (order.group_start - order.start) * PARTS // length
    return {name: jnp.where(order.predicted, part, -1) for name, part in (("rank", rank_BxL), ("visible", visible_BxL))}
