"""Block diffusion: blocks of places come from left to right, and within each the places that the model is most certain of.

A block is read twice (`a3jax.ordering.masking`): noisily while its places are open, each row seeing the blocks before and its
own, and once they are decided cleanly, into the cache for good (arXiv 2503.09573). Here both see one range: the keys of the
noisy block lie in the cache behind those of the clean ones, until the clean block is written over them. A pass reads the
block before the current one anew, whose last row predicts the current one's first place, and the current one; each of a
block's `steps` passes decides as many of its places.

Slots of the cache are places of the text. Text behind the current block is not seen.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import FEW_ROWS, PassKind, Plan, State, at, write
from a3jax.decode.choosing import certainties, choose, most_certain
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Certainty, Decoding
from a3jax.model.network import Network
from a3jax.model.two_stream import Stream


@functools.partial(jax.jit, static_argnames=("rows", "block", "steps", "certainty"), donate_argnames="state")
def decode_block(
    network: Network,
    state: State,
    plan: Plan,
    number_B: Array,
    rows: int,
    block: int,
    steps: int,
    certainty: Certainty,
) -> State:
    """Pass `number`, of `rows` rows: read on, and decide places of the current block where reading has come to it."""
    (length,) = state.tokens_BxL.shape[1:]
    place_L, length_Bx1 = jnp.arange(length), plan.length_B[:, None]
    blank_BxL = (state.passes_BxL != 0) & (place_L < length_Bx1)
    open_BxL = blank_BxL & (state.passes_BxL < 0)
    current_B = jnp.where(open_BxL.any(axis=1), open_BxL.argmax(axis=1), plan.length_B) // block * block
    from_B = jnp.minimum(state.read_B, jnp.maximum(current_B - block, 0))
    reached_B = current_B + block <= from_B + rows
    clean_B = jnp.minimum(current_B, (from_B + rows) // block * block)

    place_BxR = from_B[:, None] + jnp.arange(rows)
    ends_BxR = jnp.minimum(place_BxR // block * block + block, length_Bx1)
    clean_BxR = place_BxR < clean_B[:, None]
    noisy_BxR = reached_B[:, None] & (place_BxR >= current_B[:, None]) & (place_BxR < current_B[:, None] + block)
    end_BxR = jnp.where((clean_BxR | noisy_BxR) & (place_BxR < length_Bx1), ends_BxR, 0)
    module = network.module()
    x_BxRxD = module.embed_queries(at(state.tokens_BxL, place_BxR), ~at(open_BxL, place_BxR), network.compute)
    stream = Stream(x_BxRxD, place_BxR, jnp.zeros_like(end_BxR), end_BxR)
    compute = network.compute._replace(attention="dense") if rows <= FEW_ROWS else network.compute
    hidden_BxRxD, cache = module.run_cached(stream, None, state.cache, from_B, compute)

    place_BxS = current_B[:, None] + jnp.arange(block)
    before_BxS = jnp.clip(place_BxS - 1 - from_B[:, None], 0, rows - 1)  # the row before a place predicts it
    hidden_BxSxD = jnp.take_along_axis(hidden_BxRxD, before_BxS[..., None], axis=1)
    logits_BxSxV = plan.restriction.on(module.logits(hidden_BxSxD), place_BxS)
    token_BxS, log_prob_BxS = choose(state, plan, logits_BxSxV, place_BxS)

    in_text_BxS = (place_BxS < length_Bx1) & reached_B[:, None]
    open_BxS = at(open_BxL, place_BxS) & in_text_BxS
    due_B = -(-(at(blank_BxL, place_BxS) & in_text_BxS).sum(axis=1) // steps)
    certainty_BxS = certainties(logits_BxSxV, log_prob_BxS, place_BxS, plan, number_B, certainty)
    chosen_BxS = most_certain(certainty_BxS, open_BxS, due_B)
    state = write(state, place_BxS, chosen_BxS, token_BxS, log_prob_BxS, number_B)
    return state._replace(cache=cache, read_B=clean_B, decided_B=state.decided_B + chosen_BxS.sum(axis=1))


def _advance(
    network: Network, state: State, carry: Any, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Any]:
    # The first pass reads what is given, so far as nothing is open before it.
    rows = max(2 * decoding.block, kind.content_rows)
    how = (decoding.block, decoding.steps, decoding.certainty)
    return decode_block(network, state, plan, number_B, rows, *how), carry


MODE = Mode(_advance, rows=lambda plan, decoding: 2 * decoding.block, planned=False, causal=False)
