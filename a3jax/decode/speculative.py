"""One token at a time in distribution, several a pass: any-subset speculative decoding (Guo & Ermon, arXiv 2504.20456).

Tokens further on are drafted from what is decided, each by itself; a pass that reads the drafts also says what their
distributions truly are, and keeps the longest beginning that passes the test of speculative sampling (Leviathan et al.,
arXiv 2211.17192): a draft with probability p stands with probability min(1, q / p), q being its true one, and in place of
the first that falls a token is drawn from the positive part of q - p. What comes out is distributed exactly as one-by-one
decoding, whatever the drafts were.

Two things make it take fewer passes than scoring and drafting in turn would. A pass that scores k drafts does not know
yet how many stand, but rows are cheap beside reading the weights, so it drafts the next k for every outcome at once: row
(j, i) predicts the token i ranks after the j-th draft from what is decided and the first j drafts. Rows (j, 0) are the
true distributions, rows (j, 1..k) the next drafts if j stand. Every pass decides at least one token.

What is drafted of these predictions, and of the text itself, stands in `a3jax.decode.drafting`. Before the first pass the
text alone drafts.

Where tokens come from left to right, rows (j, 0) are the rows that read the drafts. And where rows are not cheap, as on a
CPU, the text may be the only drafter: there are no rows (j, 1..k) then.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, at, predict, write
from a3jax.decode.choosing import place_keys, seen_tokens
from a3jax.decode.drafting import Drafts, by_both, by_text
from a3jax.decode.mode import Mode
from a3jax.decode.sampling import choices, draw, log_prob
from a3jax.decode.settings import Decoding, Drafter
from a3jax.model.cache import Cache
from a3jax.model.network import Network


class _Scores(NamedTuple):
    """What a pass says of the drafts that it read, and of what comes behind each beginning of them."""

    logits_BxJxV: Array
    """True ones of the next token, behind the first j = 0..k drafts."""
    further_BxJxIxV: Array
    """Of each of the tokens after that one; I is k, or 0 where the text alone drafts."""
    cache: Cache


@functools.partial(jax.jit, static_argnames=("kind", "ahead", "drafter"), donate_argnames=("state", "drafts"))
def decode_drafted(
    network: Network,
    state: State,
    drafts: Drafts | None,
    plan: Plan,
    number_B: Array,
    kind: PassKind,
    ahead: int,
    drafter: Drafter,
) -> tuple[State, Drafts]:
    """Pass `number`: read and test the drafts, decide those that stand and one more, and draft the next, `ahead` at most.

    Without drafts, which is before the first pass, the text is asked for them.
    """
    index_J, decided_Bx1 = jnp.arange(ahead + 1), state.decided_B[:, None]
    place_BxJ = at(state.place_BxL, decided_Bx1 + index_J)
    if drafts is None:
        drafts = by_text(state, plan, place_BxJ[:, :-1])
    count_B = jnp.clip(plan.length_B - state.decided_B, 0, drafts.proposed_B)
    drafted_BxK = index_J[:-1] < count_B[:, None]
    scores = _scored(network, state, drafts, plan, number_B, count_B, place_BxJ, kind, ahead if drafter == "both" else 0)

    seen_BxJxV = _seen_with_drafts(state, drafts.token_BxK, drafted_BxK, scores.logits_BxJxV.shape[-1])
    true_BxJxV = choices(scores.logits_BxJxV, plan.sampling, plan.allowed_BxV, seen_BxJxV)
    stand_B = _standing(drafts, true_BxJxV, drafted_BxK, place_keys(plan.keys_B, place_BxJ[:, :-1], "accept"))
    token_BxJ = _with_one_more(drafts, true_BxJxV, stand_B, stand_B < count_B, place_BxJ, plan)
    new_BxJ = (index_J <= stand_B[:, None]) & (decided_Bx1 + index_J < plan.length_B[:, None])
    log_prob_BxJ = log_prob(scores.logits_BxJxV, token_BxJ)
    read_B = jnp.minimum(state.decided_B + stand_B, plan.length_B)
    state = write(state, place_BxJ, new_BxJ, token_BxJ, log_prob_BxJ, number_B)
    state = state._replace(cache=scores.cache, read_B=read_B, decided_B=state.decided_B + new_BxJ.sum(axis=1))

    place_BxK = at(state.place_BxL, state.decided_B[:, None] + index_J[:-1])
    if drafter == "text":
        return state, by_text(state, plan, place_BxK)
    further_BxKxV = scores.further_BxJxIxV[jnp.arange(len(stand_B)), stand_B]
    return state, by_both(state, plan, place_BxK, further_BxKxV, _row(seen_BxJxV, stand_B))


def _scored(
    network: Network,
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
    logits, cache = predict(network, supposed, plan, until_B, at(state.place_BxL, slot_BxR), end_BxR, kind)
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
    network: Network, state: State, drafts: Drafts | None, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Drafts]:
    return decode_drafted(network, state, drafts, plan, number_B, kind, decoding.drafts, decoding.drafter)


MODE = Mode(
    _advance,
    rows=lambda plan, decoding: decoding.drafts + 1,
    ahead=lambda decoding: decoding.drafts,
    planned=True,
    causal=True,
    one_stream=lambda plan: not plan.extent.queries,
)
