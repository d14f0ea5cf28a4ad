"""Filling blanks group by group, in generation order, one forward pass per group.

What is committed never changes, so its keys and values are kept in a cache in generation order. One forward pass does
two things at once: it reads the tokens just committed (content rows, whose keys and values go into the cache), and it
predicts the next group from everything committed (query rows). The first pass reads the given tokens and predicts the
first group; K groups take K passes, and the last group is never read.

A pass has a fixed number of rows: the given tokens rounded up to a bucket, then the group size. Rows beyond a group's
end see nothing, and what they write into the cache is overwritten by the next group before anything can see it. Where
a group ends is data on the device, so that one compiled program serves every order, and sequences of one batch may
differ in length, given tokens and order. The host only counts groups.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from a3jax.config import Family, ModelConfig, Seeding
from a3jax.decode.sampling import Sampling, sample
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Cache, Compute, Rows, empty_cache
from a3jax.ordering import Order, arrange, draw_groups, example_keys, parse_order

FEW_ROWS = 128
"""Up to so many rows attend to the whole cache at once, which is cheaper than block by block."""


class Drawn(NamedTuple):
    """One sequence, padded to a bucket of L tokens, with an order and a key for sampling."""

    tokens_L: np.ndarray
    order: Order
    """Each array has L entries."""
    key: Array


class Plan(NamedTuple):
    """What to decode: a batch of sequences, each with its order. Lengths are rounded up to one bucket L."""

    tokens_BxL: Array
    """In window order; anything where a token is to be predicted."""
    order: Order
    given_B: Array
    """Given tokens of each sequence."""
    keys_B: Array
    """For sampling."""
    groups: int
    """Forward passes that the longest sequence takes."""
    prefill: int
    """Content rows of the first pass, given tokens rounded up to a bucket."""
    rows: int
    """Content rows of every other pass, and query rows of every pass."""


class State(NamedTuple):
    """Everything that a pass changes. Slots before `committed` are in the cache, those before `open` have their tokens."""

    cache: Cache
    tokens_BxL: Array
    log_probs_BxL: Array
    """Nats under the model's own distribution, window order; zero where nothing was predicted."""
    committed_B: Array
    open_B: Array


class Filled(NamedTuple):
    """The outcome, in window order."""

    tokens_BxL: np.ndarray
    log_probs_BxL: np.ndarray
    forwards: int


def bucket(count: int) -> int:
    """`count` rounded up to a power of two, at least 32, so that few sizes are ever compiled."""
    return max(32, 1 << (count - 1).bit_length())


def draw(seed: int, tokens: Sequence[int], given: Sequence[bool], order: str, seeding: Seeding) -> Drawn:
    """Draw the order of one sequence, padded to its bucket. Raises `UserError` for an unknown order.

    It depends on the seed, the given mask and the seeding alone, not on what else is in a batch.
    """
    family, group_size = parse_order(order)
    length = bucket(len(tokens))
    padding = (0, length - len(tokens))
    given_L = np.pad(np.asarray(given, bool), padding)
    segment_L = np.pad(np.ones(len(tokens), np.int32), padding)
    # A group never exceeds the window; a larger size means the same, and might not fit an int32.
    key, arranged = _draw(np.uint32(seed), given_L, segment_L, min(group_size, length), family=family, seeding=seeding)
    return Drawn(np.pad(np.asarray(tokens, np.int32), padding), arranged, key)


@functools.partial(jax.jit, static_argnames=("family", "seeding"))
def _draw(
    seed: Array, given_L: Array, segment_L: Array, group_size: Array, family: Family, seeding: Seeding
) -> tuple[Array, Order]:
    group_key, sample_key = jax.random.split(example_keys(seed, 0, 1)[0])
    group_L = draw_groups(group_key, segment_L, given_L, family, group_size)  # type: ignore[arg-type]
    return sample_key, arrange(group_L, given_L, segment_L, seeding)


def plan(
    seeds: Sequence[int], tokens: Sequence[Sequence[int]], given: Sequence[Sequence[bool]], order: str, seeding: Seeding
) -> Plan:
    """Draw every sequence's order and bring the batch to one shape. Raises `UserError` for an unknown order."""
    drawn = [draw(*one, order, seeding) for one in zip(seeds, tokens, given)]
    length = max(len(one.tokens_L) for one in drawn)
    order_BxL = jax.tree.map(lambda *rows: np.stack(rows), *[_pad(one.order, length) for one in drawn])
    starts = [start_L[wanted_L] for start_L, wanted_L in zip(order_BxL.group_start, order_BxL.predicted)]
    given_B = np.array([sum(known) for known in given], np.int32)
    return Plan(
        tokens_BxL=jnp.asarray(np.stack([np.pad(one.tokens_L, (0, length - len(one.tokens_L))) for one in drawn])),
        order=jax.tree.map(jnp.asarray, order_BxL),
        given_B=jnp.asarray(given_B),
        keys_B=jnp.stack([one.key for one in drawn]),
        groups=max(len(np.unique(start)) for start in starts),
        prefill=bucket(int(given_B.max())),
        rows=min(parse_order(order)[1], bucket(max(map(len, starts)))),
    )


def _pad(order: Order, length: int) -> Order:
    """The order of one sequence with padding up to `length`: slots that see nothing and are not predicted."""
    own, end = len(order.position), int(order.group_end[-1])
    fills = {"predecessor": -1, "start": end, "group_start": end, "group_end": end, "predicted": False}

    def pad(name: str, x_L: Array) -> Any:
        rest = np.arange(own, length) if name == "token_index" else np.full(length - own, fills.get(name, 0))
        return np.concatenate([x_L, rest]).astype(x_L.dtype)

    return Order(**{name: pad(name, x_L) for name, x_L in order._asdict().items()})


def decode(params: nnx.State, config: ModelConfig, how: Compute, plan: Plan, sampling: Sampling, allowed_V: Array) -> Filled:
    """Fill everything that is not given, drawing only `allowed` tokens.

    Passes are dispatched one after another without waiting; the result is read once, at the end.
    """
    batch, length = plan.tokens_BxL.shape
    state = State(
        cache=empty_cache(config, batch, length, how),
        tokens_BxL=jnp.copy(plan.tokens_BxL),  # the state is donated, the plan is not
        log_probs_BxL=jnp.zeros((batch, length)),
        committed_B=jnp.zeros(batch, jnp.int32),
        open_B=jnp.copy(plan.given_B),
    )
    content_rows = plan.prefill
    for _ in range(plan.groups):
        state = forward(params, state, plan.order, plan.keys_B, sampling, allowed_V, config, how, content_rows, plan.rows)
        content_rows = plan.rows
    tokens_BxL, log_probs_BxL = jax.device_get((state.tokens_BxL, state.log_probs_BxL))
    return Filled(tokens_BxL, log_probs_BxL, plan.groups)


@functools.partial(jax.jit, static_argnames=("config", "how", "content_rows", "query_rows"), donate_argnames="state")
def forward(
    params: nnx.State,
    state: State,
    order: Order,
    keys_B: Array,
    sampling: Sampling,
    allowed_V: Array,
    config: ModelConfig,
    how: Compute,
    content_rows: int,
    query_rows: int,
) -> State:
    """One pass: read slots [committed, open), then choose tokens for the group that begins at `open`. C + S rows."""
    network = nnx.merge(graph(config), params)
    length = state.tokens_BxL.shape[1]
    closed_B = _at(order.group_end, state.open_B[:, None])[:, 0]

    slot_BxC = state.committed_B[:, None] + jnp.arange(content_rows)
    read_BxC = slot_BxC < state.open_B[:, None]
    content = network.embed(_at(state.tokens_BxL, _at(order.token_index, slot_BxC)), how)

    slot_BxS = state.open_B[:, None] + jnp.arange(query_rows)
    chosen_BxS = slot_BxS < closed_B[:, None]
    predecessor_BxS = _at(order.predecessor, slot_BxS)
    seed_BxS = _at(state.tokens_BxL, jnp.maximum(predecessor_BxS, 0))
    query = network.embed_queries(seed_BxS, predecessor_BxS >= 0, how)

    end_BxC = jnp.where(read_BxC, _at(order.group_end, slot_BxC), 0)
    end_BxS = jnp.where(chosen_BxS, state.open_B[:, None], 0)
    end = jnp.concatenate([end_BxC, end_BxS], axis=1)
    position = jnp.concatenate([_at(order.position, slot_BxC), _at(order.query_position, slot_BxS)], axis=1)
    rows = Rows(jnp.concatenate([content, query], axis=1), position, jnp.zeros_like(end), end)
    if content_rows + query_rows <= FEW_ROWS:
        how = how._replace(attention="dense")
    hidden_BxSxD, cache = network.run(rows, content_rows, how, state.cache, state.committed_B)
    head_VxD = network.output_matrix[...].astype(hidden_BxSxD.dtype)
    logits_BxSxV = jnp.einsum("bsd,vd->bsv", hidden_BxSxD, head_VxD, preferred_element_type=jnp.float32)

    # A token's noise belongs to its place in the text, so that it is the same whatever the group size.
    index_BxS = jnp.where(chosen_BxS, _at(order.token_index, slot_BxS), length)
    keys_BxS = jax.vmap(lambda key, index_S: jax.vmap(lambda index: jax.random.fold_in(key, index))(index_S))(
        keys_B, index_BxS
    )
    token_BxS, log_prob_BxS = sample(keys_BxS, logits_BxSxV, sampling, allowed_V)
    place = (jnp.arange(len(keys_B))[:, None], index_BxS)
    return State(
        cache=cache,
        tokens_BxL=state.tokens_BxL.at[place].set(token_BxS, mode="drop"),
        log_probs_BxL=state.log_probs_BxL.at[place].set(log_prob_BxS, mode="drop"),
        committed_B=state.open_B,
        open_B=closed_B,
    )


def _at(x_BxL: Array, index_BxR: Array) -> Array:
    """Gather along L; an index beyond the end reads the last entry, which callers mask."""
    return jnp.take_along_axis(x_BxL, index_BxR, axis=1, mode="clip")
