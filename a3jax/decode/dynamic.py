"""Deciding first what the model is most certain of, so that easy text takes few passes.

Every pass predicts the first `window` open places from all that is decided, and decides those whose certainty reaches a
threshold, at most `commit` (algorithm 2 of arXiv 2601.13228; the threshold is that of Fast-dLLM, Wu et al., arXiv
2505.22618). Where none does it decides the first open place: all that stands left of it is known, so that it is as a rule
predicted better than any other. The places of one pass form a group of the order that so comes about, and the text has an
exact log-probability under that order like any other.

With `confidence` that is not the probability of drawing the text, not even at temperature 1: a place is chosen for the token
drawn there, so that every text is told in an order which suits it, and over all texts these probabilities add up to more
than 1. The other certainties know nothing of the token drawn, and there they add up to 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, predict, write
from a3jax.decode.choosing import certainties, choose, most_certain
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Certainty, Decoding
from a3jax.model.network import Network


@functools.partial(jax.jit, static_argnames=("kind", "window", "commit", "certainty"), donate_argnames="state")
def decode_certain(
    network: Network,
    state: State,
    plan: Plan,
    number_B: Array,
    kind: PassKind,
    window: int,
    commit: int,
    certainty: Certainty,
) -> State:
    """Pass `number`: read what was decided last, and decide up to `commit` of the first `window` open places."""
    place_BxW = open_places(state, plan, window)
    open_BxW = place_BxW < state.tokens_BxL.shape[1]
    end_BxW = jnp.where(open_BxW, state.decided_B[:, None], 0)
    logits_BxWxV, cache = predict(network, state, plan, state.decided_B, place_BxW, end_BxW, kind)
    token_BxW, log_prob_BxW = choose(state, plan, logits_BxWxV, place_BxW)
    certainty_BxW = certainties(logits_BxWxV, log_prob_BxW, place_BxW, plan, number_B, certainty)
    certain_BxW = most_certain(certainty_BxW, open_BxW, commit)
    sure_BxW = certain_BxW & (certainty_BxW >= plan.threshold_B[:, None])
    first_W = jnp.arange(open_BxW.shape[1]) == 0
    chosen_BxW = sure_BxW | (open_BxW & first_W & ~sure_BxW.any(axis=1, keepdims=True))
    read_B = state.decided_B
    state = decide(state, place_BxW, chosen_BxW, token_BxW, log_prob_BxW, number_B)
    return state._replace(cache=cache, read_B=read_B)


def open_places(state: State, plan: Plan, count: int) -> Array:
    """The first `count` open places from the left, B x count; L where there are no more."""
    length = state.tokens_BxL.shape[1]
    index_L = jnp.arange(length)
    open_BxL = (state.passes_BxL < 0) & (index_L < plan.length_B[:, None])
    return jnp.sort(jnp.where(open_BxL, index_L, length), axis=1)[:, :count]


def decide(
    state: State, place_BxW: Array, chosen_BxW: Array, token_BxW: Array, log_prob_BxW: Array, number_B: Array
) -> State:
    """The state in which the chosen places have their tokens, and the next slots in the order in which they stand here."""
    batch, length = state.tokens_BxL.shape
    slot_BxW = state.decided_B[:, None] + jnp.cumsum(chosen_BxW, axis=1) - chosen_BxW
    row = jnp.arange(batch)[:, None]
    return write(state, place_BxW, chosen_BxW, token_BxW, log_prob_BxW, number_B)._replace(
        slot_BxL=state.slot_BxL.at[row, jnp.where(chosen_BxW, place_BxW, length)].set(slot_BxW, mode="drop"),
        place_BxL=state.place_BxL.at[row, jnp.where(chosen_BxW, slot_BxW, length)].set(place_BxW, mode="drop"),
        decided_B=state.decided_B + chosen_BxW.sum(axis=1),
    )


def _advance(
    network: Network, state: State, carry: Any, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Any]:
    window = min(decoding.window, plan.tokens_BxL.shape[1])
    return decode_certain(network, state, plan, number_B, kind, window, decoding.commit, decoding.certainty), carry


MODE = Mode(_advance, rows=lambda plan, decoding: decoding.commit, planned=False, causal=False)
