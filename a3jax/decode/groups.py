"""Filling blanks group by group, in an order fixed beforehand. K groups take K passes; the last is never read."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, at, predict, write
from a3jax.decode.choosing import choose
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Decoding
from a3jax.model.network import Network


@functools.partial(jax.jit, static_argnames=("kind", "rows"), donate_argnames="state")
def decode_group(network: Network, state: State, plan: Plan, number_B: Array, kind: PassKind, rows: int) -> State:
    """Pass `number`: read what was decided last, and choose tokens for the next group, of at most `rows` places."""
    slot_BxS = state.decided_B[:, None] + jnp.arange(rows)
    closed_B = at(plan.order.group_end, state.decided_B[:, None])[:, 0]
    live_BxS = slot_BxS < closed_B[:, None]
    place_BxS = at(state.place_BxL, slot_BxS)
    end_BxS = jnp.where(live_BxS, state.decided_B[:, None], 0)
    logits_BxSxV, cache = predict(network, state, plan, state.decided_B, place_BxS, end_BxS, kind)
    state = write(state, place_BxS, live_BxS, *choose(state, plan, logits_BxSxV, place_BxS), number_B)
    return state._replace(cache=cache, read_B=state.decided_B, decided_B=closed_B)


def _advance(
    network: Network, state: State, carry: Any, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Any]:
    return decode_group(network, state, plan, number_B, kind, plan.extent.rows), carry


MODE = Mode(
    _advance,
    rows=lambda plan, decoding: plan.extent.rows,
    planned=True,
    causal=False,
    passes=lambda plan: plan.extent.groups,
    one_stream=lambda plan: not plan.extent.queries,
)
