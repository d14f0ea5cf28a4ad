"""Masked diffusion: all open places are predicted from the whole text in every pass, and some of them decided.

There is one stream, whose rows all see all of the text, so what a row computes changes with every place that is decided:
there is no cache, and each pass reads the text anew. Pass k of `steps` decides so many places that k / steps of them are
decided then: those that the model is most certain of, or any (arXiv 2502.09992). With `remask`, every pass but the first
begins by opening so many decided places again, those least probable when they were decided, and decides as many more
(after arXiv 2503.00307). A text of fewer places than `steps` takes a pass for each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, write
from a3jax.decode.choosing import certainties, choose, most_certain
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Certainty, Decoding
from a3jax.model.network import Network
from a3jax.ordering import MaskedRows
from a3jax.ordering.sequence import bucket


@functools.partial(jax.jit, static_argnames=("rows", "steps", "remask", "certainty"), donate_argnames="state")
def decode_masked(
    network: Network,
    state: State,
    plan: Plan,
    number_B: Array,
    rows: int,
    steps: int,
    remask: int,
    certainty: Certainty,
) -> State:
    """Pass `number` of `steps` over texts of at most `rows` open places."""
    batch, length = state.tokens_BxL.shape
    place_L, row = jnp.arange(length), jnp.arange(batch)[:, None]
    blank_BxL = (state.passes_BxL != 0) & (place_L < plan.length_B[:, None])
    blanks_B = blank_BxL.sum(axis=1)
    steps_B = jnp.clip(blanks_B, 1, steps)
    if remask:
        decided_BxL = blank_BxL & (state.passes_BxL > 0)
        again_BxL = most_certain(-state.log_probs_BxL, decided_BxL, jnp.where(number_B <= steps_B, remask, 0))
        state = state._replace(passes_BxL=jnp.where(again_BxL, -1, state.passes_BxL))
    open_BxL = blank_BxL & (state.passes_BxL < 0)

    module = network.module()
    end_BxL = jnp.where(place_L < plan.length_B[:, None], plan.length_B[:, None], 0)
    place_BxL = jnp.broadcast_to(place_L, (batch, length))
    masked = MaskedRows(place_BxL, open_BxL, place_BxL, jnp.zeros_like(place_BxL), end_BxL)
    hidden_BxLxD = module.masked_hidden(state.tokens_BxL, masked, network.compute)

    place_BxW = jnp.sort(jnp.where(open_BxL, place_L, length), axis=1)[:, :rows]
    open_BxW = place_BxW < length
    before_BxW = jnp.minimum(jnp.maximum(place_BxW - 1, 0), length - 1)  # the row before a place predicts it
    logits_BxWxV = plan.restriction.on(module.logits(hidden_BxLxD[row, before_BxW]), place_BxW)
    keys_B = jax.vmap(jax.random.fold_in)(plan.keys_B, number_B) if remask else plan.keys_B
    token_BxW, log_prob_BxW = choose(state, plan._replace(keys_B=keys_B), logits_BxWxV, place_BxW)

    certainty_BxW = certainties(logits_BxWxV, log_prob_BxW, place_BxW, plan, number_B, certainty)
    due_B = -(-blanks_B * jnp.minimum(number_B, steps_B) // steps_B) - (blanks_B - open_BxL.sum(axis=1))
    chosen_BxW = most_certain(certainty_BxW, open_BxW, due_B)
    state = write(state, place_BxW, chosen_BxW, token_BxW, log_prob_BxW, number_B)
    return state._replace(decided_B=plan.given_B + (blank_BxL & (state.passes_BxL > 0)).sum(axis=1))


def _advance(
    network: Network, state: State, carry: Any, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Any]:
    rows = min(bucket(plan.extent.groups), plan.tokens_BxL.shape[1])  # in the order of the plan every open place is a group
    how = (decoding.steps, decoding.remask, decoding.certainty)
    return decode_masked(network, state, plan, number_B, rows, *how), carry


MODE = Mode(_advance, rows=lambda plan, decoding: 0, planned=False, causal=False, cached=False)
