"""From what a pass predicts to what becomes of it: a token for each place, and which places the model is most certain of.

Every sequence of a batch chooses by itself, as its plan says.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import Plan, State
from a3jax.decode.sampling import choices, draw, log_prob
from a3jax.decode.settings import Certainty

Purpose = Literal["choose", "accept", "replace", "rank"]


def choose(state: State, plan: Plan, logits_BxSxV: Array, place_BxS: Array) -> tuple[Array, Array]:
    """A token for each place, drawn as the plan's sampling says, and its nats under the model's own distribution, B x S."""
    seen_Bx1xV = seen_tokens(state, logits_BxSxV.shape[-1])[:, None]
    wanted_BxSxV = choices(logits_BxSxV, plan.sampling, plan.allowed_BxV, seen_Bx1xV)
    token_BxS = draw(place_keys(plan.keys_B, place_BxS), wanted_BxSxV, plan.sampling)
    return token_BxS, log_prob(logits_BxSxV, token_BxS)


def seen_tokens(state: State, vocab: int) -> Array:
    """B x V bool: which tokens the decided text holds."""
    decided_BxL = state.passes_BxL >= 0
    batch = jnp.arange(len(decided_BxL))[:, None]
    token_BxL = jnp.where(decided_BxL, state.tokens_BxL, vocab)
    return jnp.zeros((len(decided_BxL), vocab), bool).at[batch, token_BxL].set(True, mode="drop")


def place_keys(keys_B: Array, place_BxS: Array, purpose: Purpose = "choose") -> Array:
    """A key for every row. Noise belongs to a place in the text, so that it is the same whatever is decided together."""
    number = {"choose": 0, "accept": 1, "replace": 2, "rank": 3}[purpose]
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B) if number else keys_B
    return jax.vmap(lambda key, place_S: jax.vmap(lambda place: jax.random.fold_in(key, place))(place_S))(keys_B, place_BxS)


def certainties(
    logits_BxWxV: Array, log_prob_BxW: Array, place_BxW: Array, plan: Plan, number_B: Array, certainty: Certainty
) -> Array:
    """How certain each place is in pass `number`, B x W, from 0 to 1, under the distribution that `logits` tell.

    confidence  the probability exp(`log_prob`) of a token
    entropy     exp(-entropy): 1 / n for n tokens that are equally probable
    margin      by how much the most probable token leads the next
    random      chance
    """
    if certainty == "random":
        # A new number in every pass, or the same places would stay last however the window moves.
        keys = place_keys(jax.vmap(jax.random.fold_in)(plan.keys_B, number_B), place_BxW, "rank")
        return jax.vmap(jax.vmap(jax.random.uniform))(keys)
    if certainty == "confidence":
        return jnp.exp(log_prob_BxW)
    probability = jax.nn.softmax(logits_BxWxV, axis=-1)
    if certainty == "entropy":
        return jnp.exp(-jax.scipy.special.entr(probability).sum(axis=-1))
    first_BxW, second_BxW = jnp.moveaxis(jax.lax.top_k(probability, 2)[0], -1, 0)
    return first_BxW - second_BxW


def most_certain(certainty_BxW: Array, open_BxW: Array, count: int | Array) -> Array:
    """Which of the open places are among the `count` most certain ones, B x W; of equal ones those further left.

    Each sequence may have a count of its own.
    """
    rank_BxW = jnp.argsort(jnp.argsort(jnp.where(open_BxW, -certainty_BxW, jnp.inf), axis=1, stable=True), axis=1)
    return open_BxW & (rank_BxW < jnp.reshape(count, (-1, 1)))
