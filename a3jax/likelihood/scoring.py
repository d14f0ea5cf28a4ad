"""Exact log-likelihood of sequences of tokens in any order and grouping, as many of them in a pass as are of like length."""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.curriculum.stage import BOUND, Prefill, check_orders
from a3jax.devices import context_parallel
from a3jax.devices.mesh import fetched, filled_up, parts_in_use
from a3jax.errors import UserError
from a3jax.likelihood.forward import bound, log_probs, one_stream_is_enough
from a3jax.likelihood.restriction import Allowed, Restriction, restriction
from a3jax.model.network import Network, check_context
from a3jax.ordering import Order, draw_masking, example_keys
from a3jax.ordering.sequence import bucket, draw, grouped, left_to_right, pad_order

BATCH = 8
"""Texts of one forward pass, on each of the devices that share it."""


@dataclass(frozen=True)
class Likelihood:
    """Exact log-probability of a text, in nats; the mean over orders where there are several.

    With `is_bound` it is no log-probability, but the mean of draws whose expectation is at most that.
    """

    total: float
    tokens: tuple[int, ...]
    """The tokens that were predicted, in the order of the text."""
    log_probs: tuple[float, ...]
    """One for each of `tokens`."""
    totals: tuple[float, ...]
    """`total` in each order, or of each draw."""
    is_bound: bool = False

    @property
    def spread(self) -> float:
        """Standard deviation of `totals`, 0 for one order."""
        return statistics.stdev(self.totals) if len(self.totals) > 1 else 0.0

    @property
    def error(self) -> float:
        """Standard error of `total` as a mean over draws, 0 for one draw."""
        return self.spread / math.sqrt(len(self.totals))


def token_log_likelihood(
    model: Network,
    tokens: Sequence[int],
    given: Sequence[bool],
    order: str = "ar",
    seed: int = 0,
    orders: int = 1,
    groups: Sequence[int] | None = None,
    prefill: Prefill = "ar",
    mask_block: int | None = None,
    allowed: Allowed | None = None,
) -> Likelihood:
    """Exact log-probability of the tokens that are not `given`, each predicted from those that come before it in `order`.

    The first token must be given. Of several `orders`, drawn with seed, seed + 1, ..., the mean is returned. The `order`
    "bound" is the bound of masked diffusion instead, from so many draws of masks, with `mask_block` tokens to a block.

    With the `tokens`, `given` and `allowed` of an `Infilled`, and its order and seed, this is the log-probability with which
    the blanks were filled: decoding and teacher forcing are one model. `groups` numbers each token's group and takes the
    place of `order`: smaller numbers come first, equal ones are predicted at once; the `passes` of an `Infilled` are such
    groups. `prefill` says how given tokens are read, as in `Decoding`. At places that `allowed` names, a token's probability
    is that among the tokens that may stand there.

    Raises `UserError` if there is nothing to score, or more than the model's context.
    """
    marks = None if groups is None else [groups]
    known = None if allowed is None else [allowed]
    return token_log_likelihoods(model, [tokens], [given], order, seed, orders, marks, prefill, mask_block, known)[0]


def token_log_likelihoods(
    model: Network,
    tokens: Sequence[Sequence[int]],
    given: Sequence[Sequence[bool]],
    order: str = "ar",
    seed: int = 0,
    orders: int = 1,
    groups: Sequence[Sequence[int]] | None = None,
    prefill: Prefill = "ar",
    mask_block: int | None = None,
    allowed: Sequence[Allowed] | None = None,
) -> list[Likelihood]:
    """`token_log_likelihood` of several texts, a batch at a time."""
    if not tokens:
        raise UserError("no text is given; give at least one")
    check_orders(order if groups is None else None, orders)
    if not 0 <= seed <= 2**32 - orders:
        raise UserError(f"seed is {seed}; it must be at least 0 and below {2**32}")
    for i, (ids, known) in enumerate(zip(tokens, given)):
        _check(model, ids, known, None if groups is None else groups[i])

    if order == BOUND and groups is None:
        by_place = _bounds(model, tokens, given, range(seed, seed + orders), mask_block or 0, allowed)
    else:
        by_place = _forced_in_orders(model, tokens, given, order, range(seed, seed + orders), groups, prefill, allowed)
    found = []
    for i, (ids, known) in enumerate(zip(tokens, given)):
        each = [row[~np.asarray(known)] for row in by_place[i * orders : (i + 1) * orders]]
        totals = tuple(float(row.sum(dtype=np.float64)) for row in each)
        predicted = tuple(int(token) for token, is_given in zip(ids, known) if not is_given)
        means = tuple(np.mean(each, axis=0).tolist())
        found.append(Likelihood(statistics.fmean(totals), predicted, means, totals, order == BOUND and groups is None))
    return found


def _forced_in_orders(
    model: Network,
    tokens: Sequence[Sequence[int]],
    given: Sequence[Sequence[bool]],
    order: str,
    seeds: range,
    groups: Sequence[Sequence[int]] | None,
    prefill: Prefill,
    allowed: Sequence[Allowed] | None,
) -> list[np.ndarray]:
    """`forced` of every text in an order drawn with each of the seeds, a text's next to each other."""

    def order_of(i: int, seed: int) -> Order:
        if groups is not None:
            return grouped(given[i], groups[i], model.config.seeding, prefill)
        return draw(seed, tokens[i], given[i], order, model.config.seeding, prefill).order

    drawn = [order_of(i, seed) for i in range(len(tokens)) for seed in seeds]
    known = None if allowed is None else [one for one in allowed for _ in seeds]
    return forced(model, [ids for ids in tokens for _ in seeds], drawn, known)


def _bounds(
    model: Network,
    texts: Sequence[Sequence[int]],
    given: Sequence[Sequence[bool]],
    seeds: range,
    block: int,
    allowed: Sequence[Allowed] | None,
) -> list[np.ndarray]:
    """Each token's share of the bound by place, in nats, for each text and each seed; texts of like length share a pass."""
    asked = [(i, seed) for i in range(len(texts)) for seed in seeds]
    by_length: dict[int, list[int]] = {}
    for number, (i, _) in enumerate(asked):
        by_length.setdefault(_rounded(len(texts[i])), []).append(number)
    size = min(BATCH * parts_in_use(), len(asked))
    found: dict[int, np.ndarray] = {}
    for length, alike in by_length.items():
        for begin in range(0, len(alike), size):
            chosen = alike[begin : begin + size]
            rows = [asked[number] for number in filled_up(chosen + [chosen[-1]] * (size - len(chosen)))]
            tokens_BxL, segment_BxL = np.zeros((2, len(rows), length), np.int32)
            for row, (i, _) in enumerate(rows):
                tokens_BxL[row, : len(texts[i])] = texts[i]
                segment_BxL[row, : len(texts[i])] = np.where(given[i], -1, 1)  # context, or to be predicted
            seed_B = np.array([seed for _, seed in rows], np.uint32)
            known = _restriction(model, allowed, [i for i, _ in rows])
            share_BxL = _bound(model.network, tokens_BxL, segment_BxL, seed_B, known, block)
            found |= {number: row_L[: len(texts[asked[number][0]])] for number, row_L in zip(chosen, fetched(share_BxL))}
    return [found[number] for number in range(len(asked))]


def _check(model: Network, tokens: Sequence[int], given: Sequence[bool], groups: Sequence[int] | None) -> None:
    if len(tokens) != len(given):
        raise UserError(f"{len(tokens)} tokens but {len(given)} marks of what is given; give one for each token")
    if groups is not None and len(groups) != len(tokens):
        raise UserError(f"{len(tokens)} tokens but {len(groups)} groups; give one for each token")
    if all(given):
        raise UserError("there is nothing to score; give more text than the document's first token")
    if not given[0]:
        raise UserError("the first token of a document cannot be predicted; mark it as given")
    check_context(model, len(tokens))
    if strangers := [token for token in tokens if not 0 <= token < model.config.vocab]:
        raise UserError(f"token {strangers[0]} is not in the model's vocabulary of {model.config.vocab}")


def forced(
    model: Network, texts: Sequence[Sequence[int]], orders: Sequence[Order], allowed: Sequence[Allowed] | None = None
) -> list[np.ndarray]:
    """Log-probabilities of each text's tokens by place, in nats, by teacher forcing in its own order; 0 where given.

    At `allowed` places they are those among the tokens that may stand there.

    Texts of like length share a pass, few texts one that is as small. Those taken from left to right are kept apart, as
    successor seeding computes them at half the price.
    """
    orders = jax.device_get(orders)
    one_stream = [one_stream_is_enough(model.config, left_to_right(order, len(text))) for text, order in zip(texts, orders)]
    size = min(BATCH * parts_in_use(), len(texts))
    found: dict[int, np.ndarray] = {}
    for kind in (False, True):
        alike = sorted((i for i in range(len(texts)) if one_stream[i] == kind), key=lambda i: len(texts[i]))
        for begin in range(0, len(alike), size):
            chosen = alike[begin : begin + size]
            chosen_B = filled_up(chosen + [chosen[-1]] * (size - len(chosen)))
            length = _rounded(len(texts[chosen[-1]]))
            tokens_BxL = np.stack([np.pad(np.asarray(texts[i], np.int32), (0, length - len(texts[i]))) for i in chosen_B])
            order = jax.tree.map(lambda *x: np.stack(x), *[_cut(orders[i], length) for i in chosen_B])
            known = _restriction(model, allowed, chosen_B)
            log_prob_BxL = _log_probs(model.network, tokens_BxL, order, known, one_stream=kind)
            found |= {i: row_L[: len(texts[i])] for i, row_L in zip(chosen, fetched(log_prob_BxL))}
    return [found[i] for i in range(len(texts))]


def _restriction(model: Network, allowed: Sequence[Allowed] | None, chosen: Sequence[int]) -> Restriction | None:
    """That of the chosen texts, if any of all is restricted."""
    return restriction([allowed[i] for i in chosen], model.config.vocab) if allowed and any(allowed) else None


def _rounded(count: int) -> int:
    """`count` rounded up so that few sizes are compiled, and at most a fifth of a pass is padding where it is long."""
    step = math.lcm(max(32, bucket(count) // 8), 2 * context_parallel.devices())
    return -(-count // step) * step


def _cut(order: Order, length: int) -> Order:
    """The order of one sequence with its padding, which is last, cut or filled up to `length`."""
    return pad_order(Order(*(x_L[:length] for x_L in order)), length)


@functools.partial(jax.jit, static_argnames="one_stream")
def _log_probs(network: Network, tokens_BxL: Array, order: Order, known: Restriction | None, one_stream: bool) -> Array:
    return log_probs(network.module(), jnp.asarray(tokens_BxL), order, network.compute, one_stream, restriction=known)


@functools.partial(jax.jit, static_argnames="block")
def _bound(
    network: Network, tokens_BxL: Array, segment_BxL: Array, seed_B: Array, known: Restriction | None, block: int
) -> Array:
    keys_B = jax.vmap(lambda seed: example_keys(seed, 0, 1)[0])(seed_B)
    masking = draw_masking(keys_B, segment_BxL, block=block)
    return bound(network.module(), tokens_BxL, masking, network.compute, restriction=known)
