"""One token at a time in distribution, several a pass: any-subset speculative decoding (Guo & Ermon, arXiv 2504.20456).

Tokens further on are drafted from what is decided, each by itself; a pass that reads the drafts also says what their
distributions truly are, and keeps the longest beginning that passes the test of speculative sampling (Leviathan et al.,
arXiv 2211.17192): a draft with probability p stands with probability min(1, q / p), q being its true one, and in place of
the first that falls a token is drawn from the positive part of q - p. What comes out is distributed exactly as one-by-one
decoding, whatever the drafts were.

Two things make it take fewer passes than scoring and drafting in turn would. A pass that scores k drafts does not know
yet how many stand, but rows are cheap beside reading the weights, so it drafts the next k for every outcome at once: row
(j, i) predicts the token i ranks after the j-th draft from what is decided and the first j drafts. Rows (j, 0) are the
true distributions, rows (j, 1..k) the next drafts if j stand. Every pass decides at least one token. And where the two
tokens left of a place occurred before in the text, what followed them then is the draft (as in prompt lookup decoding):
a draft like any other, with p = 1.

Where tokens come from left to right, rows (j, 0) are the rows that read the drafts. And where rows are not cheap, as on a
CPU, the text may be the only drafter: there are no rows (j, 1..k) then, and no draft from the first on that is not found.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, at, predict, write
from a3jax.decode.choosing import place_keys, seen_tokens
from a3jax.decode.mode import Mode
from a3jax.decode.sampling import choices, draw, log_prob
from a3jax.decode.settings import Decoding, Drafter
from a3jax.model.cache import Cache


class Drafts(NamedTuple):
    """Tokens proposed for the next k slots, and the logits they were drawn from."""

    token_BxK: Array
    choices_BxKxV: Array
    proposed_B: Array
    """How many are proposed: at most k, and 0 before the first pass."""


def no_drafts(batch: int, ahead: int, vocab: int) -> Drafts:
    """What there is before the first pass."""
    return Drafts(jnp.zeros((batch, ahead), jnp.int32), jnp.zeros((batch, ahead, vocab)), jnp.zeros(batch, jnp.int32))


class _Scores(NamedTuple):
    """What a pass says of the drafts that it read, and of what comes behind each beginning of them."""

    logits_BxJxV: Array
    """True ones of the next token, behind the first j = 0..k drafts."""
    further_BxJxIxV: Array
    """Of each of the tokens after that one; I is k, or 0 where the text alone drafts."""
    cache: Cache


@functools.partial(jax.jit, static_argnames=("kind", "drafter"), donate_argnames=("state", "drafts"))
def decode_drafted(
    params: nnx.State, state: State, drafts: Drafts, plan: Plan, number_B: Array, kind: PassKind, drafter: Drafter
) -> tuple[State, Drafts]:
    """Pass `number`: read and test the drafts, decide those that stand and one more, and draft the next."""
    ahead = drafts.token_BxK.shape[1]
    index_J, decided_Bx1 = jnp.arange(ahead + 1), state.decided_B[:, None]
    place_BxJ = at(state.place_BxL, decided_Bx1 + index_J)
    count_B = jnp.clip(plan.length_B - state.decided_B, 0, drafts.proposed_B)
    drafted_BxK = index_J[:-1] < count_B[:, None]
    scores = _scored(params, state, drafts, plan, number_B, count_B, place_BxJ, kind, ahead if drafter == "both" else 0)

    seen_BxJxV = _seen_with_drafts(state, drafts.token_BxK, drafted_BxK, scores.logits_BxJxV.shape[-1])
    true_BxJxV = choices(scores.logits_BxJxV, plan.sampling, plan.allowed_BxV, seen_BxJxV)
    stand_B = _standing(drafts, true_BxJxV, drafted_BxK, place_keys(plan.keys_B, place_BxJ[:, :-1], "accept"))
    token_BxJ = _with_one_more(drafts, true_BxJxV, stand_B, stand_B < count_B, place_BxJ, plan)
    new_BxJ = (index_J <= stand_B[:, None]) & (decided_Bx1 + index_J < plan.length_B[:, None])
    log_prob_BxJ = log_prob(scores.logits_BxJxV, token_BxJ)
    read_B = jnp.minimum(state.decided_B + stand_B, plan.length_B)
    state = write(state, place_BxJ, new_BxJ, token_BxJ, log_prob_BxJ, number_B)
    state = state._replace(cache=scores.cache, read_B=read_B, decided_B=state.decided_B + new_BxJ.sum(axis=1))
    return state, _next_drafts(state, plan, scores.further_BxJxIxV, seen_BxJxV, stand_B, ahead)


def _scored(
    params: nnx.State,
    state: State,
    drafts: Drafts,
    plan: Plan,
    number_B: Array,
    count_B: Array,
    place_BxJ: Array,
    kind: PassKind,
    further: int,
) -> _Scores:
    """One forward pass that reads the first `count` drafts: first rows (j, 0) for all j, behind them rows (j, 1..further)."""
    batch, scorings = place_BxJ.shape
    j_J, (j_R, i_R) = jnp.arange(scorings), jnp.divmod(jnp.arange(scorings * further), max(1, further))
    j_R, i_R = jnp.concatenate([j_J, j_R]), jnp.concatenate([jnp.zeros_like(j_J), 1 + i_R])
    slot_BxR = state.decided_B[:, None] + j_R + i_R
    live_BxR = (slot_BxR < plan.length_B[:, None]) & (j_R <= count_B[:, None])
    end_BxR = jnp.where(live_BxR, state.decided_B[:, None] + j_R, 0)
    drafted_BxK = j_J[:-1] < count_B[:, None]
    supposed = write(state, place_BxJ[:, :-1], drafted_BxK, drafts.token_BxK, jnp.zeros(drafted_BxK.shape), number_B)
    until_B = state.decided_B + count_B
    logits, cache = predict(params, supposed, plan, until_B, at(state.place_BxL, slot_BxR), end_BxR, kind)
    further_BxJxIxV = logits[:, scorings:].reshape(batch, scorings, further, logits.shape[-1])
    return _Scores(logits[:, :scorings], further_BxJxIxV, cache)


def _with_one_more(drafts: Drafts, true_BxJxV: Array, stand_B: Array, falls_B: Array, place_BxJ: Array, plan: Plan) -> Array:
    """The drafts that stand and, behind them, the token that replaces the one that falls or comes after all, B x J."""
    true_BxV = _row(true_BxJxV, stand_B)
    fallen_BxV = _row(jnp.pad(drafts.choices_BxKxV, ((0, 0), (0, 1), (0, 0))), stand_B)
    replacing_BxV = jnp.where(falls_B[:, None], _positive_part(true_BxV, fallen_BxV), true_BxV)
    keys = place_keys(plan.keys_B, at(place_BxJ, stand_B[:, None]), "replace")
    one_Bx1 = draw(keys, replacing_BxV[:, None], plan.sampling)
    stands_BxJ = jnp.arange(place_BxJ.shape[1]) < stand_B[:, None]
    return jnp.where(stands_BxJ, jnp.pad(drafts.token_BxK, ((0, 0), (0, 1))), one_Bx1)


def _next_drafts(state: State, plan: Plan, further_BxJxIxV: Array, seen_BxJxV: Array, stand_B: Array, ahead: int) -> Drafts:
    """Of the next tokens: from the text where it repeats itself, else as drawn from `further`; without that none."""
    place_BxK = at(state.place_BxL, state.decided_B[:, None] + jnp.arange(ahead))
    batch, vocab = len(stand_B), seen_BxJxV.shape[-1]
    if not further_BxJxIxV.shape[2]:
        token_BxK, found_BxK = looked_up(state, place_BxK, jnp.zeros_like(place_BxK))
        return Drafts(token_BxK, _certain(token_BxK, vocab), jnp.cumprod(found_BxK, axis=1).sum(axis=1))
    next_BxKxV = further_BxJxIxV[jnp.arange(batch), stand_B]
    next_BxKxV = choices(next_BxKxV, plan.sampling, plan.allowed_BxV, _row(seen_BxJxV, stand_B)[:, None])
    token_BxK = draw(place_keys(plan.keys_B, place_BxK), next_BxKxV, plan.sampling)
    token_BxK, found_BxK = looked_up(state, place_BxK, token_BxK)
    choices_BxKxV = jnp.where(found_BxK[..., None], _certain(token_BxK, vocab), next_BxKxV)
    return Drafts(token_BxK, choices_BxKxV, jnp.full(batch, ahead, jnp.int32))


def _certain(token_BxK: Array, vocab: int) -> Array:
    """Logits of tokens that are certain, B x K x V."""
    return jnp.where(jnp.arange(vocab) == token_BxK[..., None], 0.0, -jnp.inf)


def looked_up(state: State, place_BxK: Array, token_BxK: Array) -> tuple[Array, Array]:
    """Drafts taken from the text itself where it has the two tokens on their left elsewhere; and which those are.

    A draft may be looked up from the drafts before it. Of several occurrences the last one serves.
    """
    batch, length = state.tokens_BxL.shape
    index_L = jnp.arange(length)
    row = jnp.arange(batch)

    def one(text: tuple[Array, Array], draft: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (tokens_BxL, known_BxL), (place_B, token_B) = text, draft
        usable_BxL = known_BxL & (index_L >= 2) & (index_L != place_B[:, None])
        asked_B = place_B >= 2
        for back in (1, 2):
            left_BxL, left_known_BxL = jnp.roll(tokens_BxL, back, axis=1), jnp.roll(known_BxL, back, axis=1)
            before_Bx1 = jnp.maximum(place_B - back, 0)[:, None]
            usable_BxL &= left_known_BxL & (left_BxL == at(tokens_BxL, before_Bx1))
            asked_B &= at(known_BxL, before_Bx1)[:, 0]
        source_B = jnp.where(usable_BxL, index_L, -1).max(axis=1)
        found_B = asked_B & (source_B >= 0)
        token_B = jnp.where(found_B, at(tokens_BxL, source_B[:, None])[:, 0], token_B)
        text = tokens_BxL.at[row, place_B].set(token_B), known_BxL.at[row, place_B].set(True)
        return text, (token_B, found_B)

    text = state.tokens_BxL, state.passes_BxL >= 0
    _, (token_KxB, found_KxB) = jax.lax.scan(one, text, (place_BxK.T, token_BxK.T))
    return token_KxB.T, found_KxB.T


def _seen_with_drafts(state: State, token_BxK: Array, drafted_BxK: Array, vocab: int) -> Array:
    """B x J x V bool: what the text holds once its first j drafts are in it."""
    none_Bx1xV = jnp.zeros((len(token_BxK), 1, vocab), bool)
    draft_BxKxV = drafted_BxK[..., None] & (jnp.arange(vocab) == token_BxK[..., None])
    added_BxJxV = jax.lax.cummax(jnp.concatenate([none_Bx1xV, draft_BxKxV], axis=1).astype(jnp.uint8), axis=1)
    return seen_tokens(state, vocab)[:, None] | (added_BxJxV > 0)


def _standing(drafts: Drafts, true_BxJxV: Array, drafted_BxK: Array, keys_BxK: Array) -> Array:
    """How many drafts stand, up to the first that does not."""
    token_BxKx1 = drafts.token_BxK[..., None]
    p_BxK = jnp.take_along_axis(jax.nn.softmax(drafts.choices_BxKxV, axis=-1), token_BxKx1, axis=-1)[..., 0]
    q_BxK = jnp.take_along_axis(jax.nn.softmax(true_BxJxV[:, :-1], axis=-1), token_BxKx1, axis=-1)[..., 0]
    uniform_BxK = jax.vmap(jax.vmap(jax.random.uniform))(keys_BxK)
    stands_BxK = drafted_BxK & (uniform_BxK * p_BxK < q_BxK)
    return jnp.cumprod(stands_BxK, axis=1).sum(axis=1)


def _positive_part(true_BxV: Array, drafted_BxV: Array) -> Array:
    """Logits of the positive part of q - p. Equal up to rounding, p cannot have fallen: then q itself."""
    rest_BxV = jnp.maximum(jax.nn.softmax(true_BxV, axis=-1) - jax.nn.softmax(drafted_BxV, axis=-1), 0)
    return jnp.where(rest_BxV.any(axis=-1, keepdims=True), jnp.log(rest_BxV), true_BxV)


def _row(x_BxJxV: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BxJxV, index_B[:, None, None], axis=1)[:, 0]


def _advance(
    params: nnx.State, state: State, drafts: Drafts, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Drafts]:
    return decode_drafted(params, state, drafts, plan, number_B, kind, decoding.drafter)


MODE = Mode(
    _advance,
    rows=lambda plan, decoding: decoding.drafts + 1,
    planned=True,
    causal=True,
    one_stream=lambda plan: not plan.extent.queries,
    begin=lambda batch, decoding, config: no_drafts(batch, decoding.drafts, config.vocab),
)
