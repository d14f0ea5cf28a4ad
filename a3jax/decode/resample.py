"""Reading everything that is decided anew in every pass: algorithm 2 of arXiv 2601.13228 as its authors' code has it
(`generate_dynamic_resampling` in github.com/PKU-ML/Any-order-Any-subset-AR).

In every pass all decided tokens, given or filled in, are one group whose tokens see each other, whenever they came, and all
open places are predicted from them. `commit` places are decided: those that are most certain under the distribution that
tokens are drawn from, after temperature and filters. What a place is chosen by is the largest probability or the entropy
of that distribution, or chance, never the token drawn. So the log-probabilities of a text, each that of its token when it
was decided, add up to its density, and over all texts these densities add up to 1. They are those of passes, each of which
reads earlier tokens differently; teacher forcing in one pass, where a token is read once and for all, gives other ones.

Nothing can be kept from pass to pass, for what a token's content row sees grows. A pass reads all decided tokens and
predicts all open places, where `a3jax.decode.dynamic` reads what is new and predicts a window.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.decode.cached import PassKind, Plan, State, predict
from a3jax.decode.choosing import certainties, most_certain, place_keys, seen_tokens
from a3jax.decode.dynamic import decide, open_places
from a3jax.decode.mode import Mode
from a3jax.decode.sampling import choices, draw, log_prob
from a3jax.decode.settings import Certainty, Decoding
from a3jax.model.network import Network
from a3jax.ordering.sequence import bucket


@functools.partial(jax.jit, static_argnames=("kind", "rows", "commit", "certainty"), donate_argnames="state")
def decode_anew(
    network: Network, state: State, plan: Plan, number_B: Array, kind: PassKind, rows: int, commit: int, certainty: Certainty
) -> State:
    """Pass `number`: read all that is decided, and decide `commit` of the open places, of which there are `rows` at most.

    No slot counts as read, and so each pass writes over what the last one left in the cache.
    """
    place_BxS = open_places(state, plan, rows)
    open_BxS = place_BxS < state.tokens_BxL.shape[1]
    end_BxS = jnp.where(open_BxS, state.decided_B[:, None], 0)
    logits_BxSxV, cache = predict(network, state, plan, state.decided_B, place_BxS, end_BxS, kind)
    # Without temperature places are ranked as at temperature 1: that distribution has one token, and all are certain.
    drawn_B = plan.sampling.temperature_B > 0
    ranking = plan.sampling._replace(temperature_B=jnp.where(drawn_B, plan.sampling.temperature_B, 1.0))
    seen_Bx1xV = seen_tokens(state, logits_BxSxV.shape[-1])[:, None]
    wanted_BxSxV = choices(logits_BxSxV, ranking, plan.allowed_BxV, seen_Bx1xV)
    best_BxS = jnp.argmax(wanted_BxSxV, axis=-1)
    token_BxS = draw(place_keys(plan.keys_B, place_BxS), wanted_BxSxV, plan.sampling)
    token_BxS = jnp.where(drawn_B[:, None], token_BxS, best_BxS)
    largest_BxS = log_prob(wanted_BxSxV, best_BxS)
    certainty_BxS = certainties(wanted_BxSxV, largest_BxS, place_BxS, plan, number_B, certainty)
    chosen_BxS = most_certain(certainty_BxS, open_BxS, commit)
    state = decide(state, place_BxS, chosen_BxS, token_BxS, log_prob(logits_BxSxV, token_BxS), number_B)
    return state._replace(cache=cache)


def _advance(
    network: Network, state: State, carry: Any, plan: Plan, number_B: Array, kind: PassKind, decoding: Decoding
) -> tuple[State, Any]:
    rows = min(bucket(plan.extent.groups), kind.content_rows)  # in the order of the plan every open place is a group
    return decode_anew(network, state, plan, number_B, kind, rows, decoding.commit, decoding.certainty), carry


MODE = Mode(_advance, rows=lambda plan, decoding: plan.tokens_BxL.shape[1], planned=False, causal=False, anew=True)
