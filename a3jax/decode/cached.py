"""Decoding's state, and the one forward pass that every mode makes.

What is decided never changes, so its keys and values are kept in a cache in generation order: a token's *slot* is its
place in that order, its *place* is where it stands in the text. One pass does two things at once. Its content rows read
the tokens decided since the last pass, and write their keys and values into the cache; its query rows predict open
places from everything decided. Which places those are, and what becomes of the predictions, is a mode's own affair.

A pass has a fixed number of rows. Rows beyond what there is to read see nothing, and what they write into the cache is
overwritten before anything can see it. Who sees how much is data on the device, so that one compiled program serves
every order, and sequences of one batch may differ in length, given tokens and order.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import ModelConfig, Seeding
from a3jax.curriculum.stage import parse_order
from a3jax.decode.sampling import Sampling, sampling_of
from a3jax.decode.settings import Decoding
from a3jax.devices.context_parallel import refuse
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.likelihood.restriction import Allowed, Restriction, restriction
from a3jax.model.cache import Cache, empty_cache
from a3jax.model.network import Network
from a3jax.model.two_stream import Beside, Compute, TwoStream
from a3jax.ordering import Order, Query, query_rule
from a3jax.ordering.sequence import bucket, draw, left_to_right, pad_order

FEW_ROWS = 128
"""Up to so many rows attend to the whole cache at once, which is cheaper than block by block."""


class Extent(NamedTuple):
    """How much there is to do in a batch, known where its passes are dispatched."""

    groups: int
    """How many groups are predicted in the sequence that has most of them."""
    prefill: int
    """Content rows of the first pass: given tokens that are not read yet, rounded up to a bucket."""
    rows: int
    """Tokens of the largest group."""
    queries: bool
    """Whether queries need rows of their own: not where the row that reads a token predicts the next."""


class Plan(NamedTuple):
    """What to decode: a batch of sequences, each with its order. Lengths are rounded up to one bucket L.

    All but the extent is of each sequence by itself.
    """

    tokens_BxL: Array
    """Tokens by place; anything where one is to be predicted."""
    order: Order
    length_B: Array
    """Tokens of each sequence."""
    given_B: Array
    """Given tokens of each sequence."""
    keys_B: Array
    sampling: Sampling
    allowed_BxV: Array
    """Tokens that may be chosen."""
    restriction: Restriction
    """Places that are known to hold some tokens only: the model's distribution there is that of these."""
    threshold_B: Array
    extent: Extent


class State(NamedTuple):
    """Everything that a pass changes, of each sequence by itself."""

    cache: Cache
    tokens_BxL: Array
    """Tokens by place, as `log_probs`, `passes` and `slot` are."""
    log_probs_BxL: Array
    """Nats under the model's own distribution; zero where nothing was predicted."""
    passes_BxL: Array
    """The pass that decided a token, from 1; 0 where it was given, -1 where it is open."""
    slot_BxL: Array
    """A place's slot; while it has none, one that no pass sees."""
    place_BxL: Array
    """A slot's place."""
    read_B: Array
    """Slots before this are in the cache."""
    decided_B: Array
    """Slots before this have their tokens."""


class Read(NamedTuple):
    """The content rows of a pass, B x C each."""

    token: Array | np.ndarray
    position: Array | np.ndarray
    """RoPE position, a token's place in its text."""
    end: Array | np.ndarray
    """The slot after the last one that is seen; 0 for a row that is not used."""


class Asked(NamedTuple):
    """The query rows of a pass, B x S each."""

    beside: Beside
    query: Query
    end: Array | np.ndarray
    """The slot after the last one that is seen; 0 for a row that is not used."""


class Beginning(NamedTuple):
    """What texts begin with, read beforehand, so that each of them goes on from a copy (`a3jax.decode.beginning`)."""

    cache: Cache
    """N x B x K x C x E: of B beginnings."""
    length_B: Array | np.ndarray
    """Tokens of each, at most C."""


class PassKind(NamedTuple):
    """What is fixed when a pass is compiled."""

    content_rows: int
    causal: bool
    """Whether a token being read sees those read before it only, or all that are decided."""
    one_stream: bool = False
    """Whether the row that reads a token predicts the next, without a query row for it."""


def plan(
    decodings: Sequence[Decoding],
    tokens: Sequence[Sequence[int]],
    given: Sequence[Sequence[bool]],
    config: ModelConfig,
    allowed_BxV: Array,
    empty: Sequence[Sequence[bool]] | None = None,
    read: int = 0,
    restricted: Sequence[Allowed] | None = None,
) -> Plan:
    """Draw every sequence's order and bring the batch to one shape. Raises `UserError` under a mesh with `context`.

    `empty` marks places that hold no token, in modes whose order is known beforehand. So many given tokens of each sequence
    are `read` already. At `restricted` places the model's distribution is that of some tokens only.
    """
    refuse("decoding")
    nothing = [None] * len(tokens) if empty is None else empty
    drawn = [
        draw(decoding.seed, ids, known, decoding.order, config.seeding, decoding.prefill, none)
        for decoding, ids, known, none in zip(decodings, tokens, given, nothing)
    ]
    length = max(len(one.tokens_L) for one in drawn)
    order_BxL = jax.tree.map(lambda *rows: np.stack(rows), *[pad_order(one.order, length) for one in drawn])
    starts = [start_L[wanted_L] for start_L, wanted_L in zip(order_BxL.group_start, order_BxL.predicted)]
    given_B = np.array([sum(known) for known in given], np.int32)
    return Plan(
        tokens_BxL=jax.device_put(np.stack([np.pad(one.tokens_L, (0, length - len(one.tokens_L))) for one in drawn])),
        order=jax.device_put(order_BxL),
        length_B=jax.device_put(np.array([len(one) for one in tokens], np.int32)),
        given_B=jax.device_put(given_B),
        keys_B=jnp.stack([one.key for one in drawn]),
        sampling=sampling_of(decodings),
        allowed_BxV=allowed_BxV,
        restriction=restriction(restricted or [{}] * len(tokens), allowed_BxV.shape[-1]),
        threshold_B=jax.device_put(np.array([d.threshold for d in decodings], np.float32)),
        extent=Extent(
            groups=max(len(np.unique(start)) for start in starts),
            prefill=bucket(int(given_B.max()) - read),
            rows=min(parse_order(decodings[0].order)[1], bucket(max(map(len, starts)))),
            queries=not all(
                one_stream_is_enough(config, left_to_right(one.order, len(ids))) for one, ids in zip(drawn, tokens)
            ),
        ),
    )


@functools.partial(jax.jit, static_argnames=("config", "compute", "planned", "cached"))  # one program in place of many
def begin(
    config: ModelConfig,
    compute: Compute,
    plan: Plan,
    planned: bool,
    cached: bool = True,
    beginning: Beginning | None = None,
) -> State:
    """The state before the first pass: given tokens are decided and, but for those of a `beginning`, not yet read.

    Without `cached` the cache has no slots. Where the order is `planned` all places have their slots; otherwise open ones
    get theirs when they are decided. All sequences have the one beginning.
    """
    batch, length = plan.tokens_BxL.shape
    place_BxL = plan.order.token_index
    slot_BxL = jnp.argsort(place_BxL, axis=1).astype(jnp.int32)
    given_BxL = slot_BxL < plan.given_B[:, None]
    if beginning is None:
        cache, read_B = empty_cache(config, batch, length if cached else 0, compute.dtype), jnp.zeros(batch, jnp.int32)
    else:
        first_B = np.zeros(batch, np.int32)
        cache, read_B = beginning.cache.copies(first_B, length), jnp.asarray(beginning.length_B, jnp.int32)[first_B]
    return State(
        cache=cache,
        tokens_BxL=jnp.copy(plan.tokens_BxL),  # the state is donated, the plan is not, and neither is given back as it is
        log_probs_BxL=jnp.zeros((batch, length)),
        passes_BxL=jnp.where(given_BxL, 0, -1).astype(jnp.int32),
        slot_BxL=slot_BxL if planned else jnp.where(given_BxL, slot_BxL, length),
        place_BxL=jnp.copy(place_BxL),
        read_B=read_B,
        decided_B=jnp.copy(plan.given_B),
    )


def predict(
    network: Network, state: State, plan: Plan, until_B: Array, place_BxS: Array, end_BxS: Array, kind: PassKind
) -> tuple[Array, Cache]:
    """One pass: read slots [read, `until`), and predict the tokens of `place` from slots before `end`.

    Returns logits B x S x V in float32, -inf for tokens that may not stand there, and the cache with what was read. Query
    rows whose end is 0 see nothing. In `one_stream` the first places are those that the rows predict that read: the one
    behind each token.
    """
    module = network.module()
    slot_BxC = state.read_B[:, None] + jnp.arange(kind.content_rows)
    place_BxC = at(state.place_BxL, slot_BxC)
    sees_BxC = slot_BxC + 1
    if not kind.causal and network.config.content != "slot":
        sees_BxC = jnp.maximum(sees_BxC, state.decided_B[:, None])  # what is only supposed is read one by one
    read = Read(at(state.tokens_BxL, place_BxC), place_BxC, jnp.where(slot_BxC < until_B[:, None], sees_BxC, 0))

    queried = slice(kind.content_rows if kind.one_stream else 0, None)
    asked = _asked(state, place_BxS[:, queried], end_BxS[:, queried], network.config.seeding)
    hidden_BxSxD, cache = one_pass(module, read, asked, state.cache, state.read_B, network.compute, all_rows=kind.one_stream)
    return plan.restriction.on(module.logits(hidden_BxSxD), place_BxS), cache


def _asked(state: State, place_BxS: Array, end_BxS: Array, seeding: Seeding) -> Asked | None:
    """The query rows of places, if there are any."""
    if not place_BxS.shape[1]:
        return None
    before_BxS, behind_BxS = jnp.maximum(place_BxS - 1, 0), jnp.minimum(place_BxS + 1, state.slot_BxL.shape[1] - 1)
    sees_before_BxS, sees_behind_BxS = (at(state.slot_BxL, beside_BxS) < end_BxS for beside_BxS in (before_BxS, behind_BxS))
    last_seen_BxS = at(jax.lax.cummax(state.place_BxL, axis=1), jnp.maximum(end_BxS - 1, 0))
    query = query_rule(place_BxS, end_BxS, last_seen_BxS, sees_before_BxS, sees_behind_BxS, seeding)
    return Asked(Beside(at(state.tokens_BxL, before_BxS), at(state.tokens_BxL, behind_BxS)), query, end_BxS)


def one_pass(
    module: TwoStream,
    read: Read,
    asked: Asked | None,
    cache: Cache,
    offset_B: Array | int,
    compute: Compute,
    all_rows: bool = False,
) -> tuple[Array, Cache]:
    """Read tokens into the cache of B documents, from slot `offset` on, and ask for others.

    Returns the normalized last hidden states of the query rows, B x S x D, or those of the content rows where nothing is
    asked, or of `all_rows`, content first; and the cache.
    """

    token_BxC, position_BxC, end_BxC = map(jnp.asarray, read)
    content, queries = module.content_stream(token_BxC, position_BxC, jnp.zeros_like(end_BxC), end_BxC, compute), None
    rows = end_BxC.shape[1]
    if asked is not None:
        beside, query, end_BxS = jax.tree.map(jnp.asarray, asked)
        queries = module.query_stream(beside, query, jnp.zeros_like(end_BxS), end_BxS, compute)
        rows += end_BxS.shape[1]
    if rows <= FEW_ROWS:
        compute = compute._replace(attention="dense")
    return module.run_cached(content, queries, cache, offset_B, compute, all_rows)


def write(
    state: State, place_BxS: Array, decided_BxS: Array, token_BxS: Array, log_prob_BxS: Array, number_B: Array
) -> State:
    """The state with tokens put into places, where `decided`, by pass `number`. Slots and counts are left to the caller."""
    index = (jnp.arange(len(place_BxS))[:, None], jnp.where(decided_BxS, place_BxS, state.tokens_BxL.shape[1]))
    return state._replace(
        tokens_BxL=state.tokens_BxL.at[index].set(token_BxS, mode="drop"),
        log_probs_BxL=state.log_probs_BxL.at[index].set(log_prob_BxS, mode="drop"),
        passes_BxL=state.passes_BxL.at[index].set(number_B[:, None], mode="drop"),
    )


def at(x_BxL: Array, index_BxR: Array) -> Array:
    """Gather along L; an index beyond the end reads the last entry, which callers mask."""
    return jnp.take_along_axis(x_BxL, index_BxR, axis=1, mode="clip")
