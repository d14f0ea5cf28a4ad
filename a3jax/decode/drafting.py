"""Drafts of the next tokens, for `a3jax.decode.speculative` to test: by the model, and by the text itself.

A model drafts each place by itself, while a pass tests the drafts before it: its drafts know nothing of each other, and not
the token that the pass decides last. The text does. Where what stands left of a place, as many of up to four tokens as can
be found, stands elsewhere too, the draft is one of the tokens that follow there, as in prompt lookup decoding; which of them
is for the model's own prediction to say. Drafts may be looked up from the drafts before them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import Plan, State, at
from a3jax.decode.choosing import place_keys
from a3jax.decode.sampling import choices, draw

LOOKED_FOR = 4
"""Tokens left of a place that are looked for elsewhere in the text, at most."""


class Drafts(NamedTuple):
    """Tokens proposed for the next k slots, and the logits they were drawn from."""

    token_BxK: Array
    choices_BxKxV: Array
    proposed_B: Array
    """How many are proposed, at most k."""


def by_text(state: State, plan: Plan, place_BxK: Array) -> Drafts:
    """Drafts of places from the text alone, up to the first place for which it has none."""
    no_own_BxK, key_BxK = jnp.zeros_like(place_BxK), place_keys(plan.keys_B, place_BxK)
    token_BxK, choices_BxKxV, found_BxK = _from_text(state, plan, place_BxK, key_BxK, None, no_own_BxK)
    return Drafts(token_BxK, choices_BxKxV, jnp.cumprod(found_BxK, axis=1).sum(axis=1))


def by_both(state: State, plan: Plan, place_BxK: Array, logits_BxKxV: Array, seen_BxV: Array) -> Drafts:
    """Drafts of places: from the text where it has some, else as the model's `logits` have them.

    `seen` are the tokens that a penalty falls on.
    """
    key_BxK = place_keys(plan.keys_B, place_BxK)
    own_BxKxV = choices(logits_BxKxV, plan.sampling, plan.allowed_BxV, seen_BxV[:, None])
    own_BxK = draw(key_BxK, own_BxKxV, plan.sampling)
    token_BxK, choices_BxKxV, found_BxK = _from_text(state, plan, place_BxK, key_BxK, logits_BxKxV, own_BxK)
    choices_BxKxV = jnp.where(found_BxK[..., None], choices_BxKxV, own_BxKxV)
    return Drafts(token_BxK, choices_BxKxV, jnp.full(len(place_BxK), place_BxK.shape[1], jnp.int32))


def _from_text(
    state: State, plan: Plan, place_BxK: Array, key_BxK: Array, logits_BxKxV: Array | None, own_BxK: Array
) -> tuple[Array, Array, Array]:
    """For one place after the other a token that `followed` what stands left of it: of several the model's choice, the last
    one without logits. Where none did, it is the place's `own`. Returns also the logits, B x K x V, and which were found.

    At a temperature they are drawn, as often as they follow and as the model has them.
    """
    temperature_Bx1 = plan.sampling.temperature_B[:, None]
    drawn_Bx1 = temperature_Bx1 > 0
    batch, vocab = len(place_BxK), plan.allowed_BxV.shape[1]
    allowed_BxV, row_B = jnp.broadcast_to(plan.allowed_BxV, (batch, vocab)), jnp.arange(batch)

    def one(
        text: tuple[Array, Array], slot: tuple[Array, Array, Array, Array | None]
    ) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        (tokens_BxL, known_BxL), (place_B, key_B, own_B, logits_BxV) = text, slot
        score_BxL = jnp.zeros(tokens_BxL.shape) if logits_BxV is None else at(logits_BxV, tokens_BxL)
        score_BxL /= jnp.where(drawn_Bx1, temperature_Bx1, 1.0)
        score_BxL = jnp.where(followed(tokens_BxL, known_BxL, place_B) & at(allowed_BxV, tokens_BxL), score_BxL, -jnp.inf)
        noise_BxL = jax.vmap(lambda key: jax.random.gumbel(key, tokens_BxL.shape[1:]))(key_B)
        noisy_BxL = score_BxL + jnp.where(drawn_Bx1, noise_BxL, 0.0)
        from_B = noisy_BxL.shape[1] - 1 - jnp.argmax(noisy_BxL[:, ::-1], axis=1)  # the last of equal ones
        found_B = score_BxL[row_B, from_B] > -jnp.inf
        token_B = jnp.where(found_B, tokens_BxL[row_B, from_B], own_B)
        text = tokens_BxL.at[row_B, place_B].set(token_B), known_BxL.at[row_B, place_B].set(True)
        return text, (token_B, found_B, tokens_BxL, score_BxL)

    slots = jax.tree.map(lambda x: x.swapaxes(0, 1), (place_BxK, key_BxK, own_BxK, logits_BxKxV))
    _, each = jax.lax.scan(one, (state.tokens_BxL, state.passes_BxL >= 0), slots)
    token_BxK, found_BxK, tokens_BxKxL, score_BxKxL = jax.tree.map(lambda x: x.swapaxes(0, 1), each)
    certain_BxKxV = jnp.where(jnp.arange(vocab) == token_BxK[..., None], 0.0, -jnp.inf)

    def drawn() -> Array:
        share_BxKxL = jnp.where(found_BxK[..., None], jax.nn.softmax(score_BxKxL, axis=-1), 0.0)
        here = row_B[:, None, None], jnp.arange(place_BxK.shape[1])[:, None], tokens_BxKxL
        probability_BxKxV = jnp.zeros_like(certain_BxKxV).at[here].add(share_BxKxL)
        return jnp.where(drawn_Bx1[..., None], jnp.log(probability_BxKxV), certain_BxKxV)

    return token_BxK, jax.lax.cond(drawn_Bx1.any(), drawn, lambda: certain_BxKxV), found_BxK


def followed(tokens_BxL: Array, known_BxL: Array, place_B: Array) -> Array:
    """Which tokens stand, elsewhere in the text, behind what stands left of a place, B x L bool.

    Of that as many tokens count as can be found with one behind them, up to `LOOKED_FOR`.
    """
    index_L = jnp.arange(tokens_BxL.shape[1])
    here_BxL = known_BxL & (index_L != place_B[:, None])
    longest_BxL = jnp.zeros_like(here_BxL)
    for back in range(1, LOOKED_FOR + 1):
        before_Bx1 = jnp.maximum(place_B - back, 0)[:, None]
        left_BxL, left_known_BxL = jnp.roll(tokens_BxL, back, axis=1), jnp.roll(known_BxL, back, axis=1)
        here_BxL &= left_known_BxL & (index_L >= back) & (left_BxL == at(tokens_BxL, before_Bx1))
        here_BxL &= at(known_BxL, before_Bx1) & (place_B >= back)[:, None]
        longest_BxL = jnp.where(here_BxL.any(axis=1, keepdims=True), here_BxL, longest_BxL)
    return longest_BxL
