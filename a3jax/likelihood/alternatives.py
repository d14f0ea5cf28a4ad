"""What else might have stood in each place of a text, from left to right: the most probable tokens beside the one there."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.devices.mesh import fetched, filled_up
from a3jax.likelihood.forward import one_stream_is_enough, predict
from a3jax.likelihood.restriction import Allowed, Restriction, restriction
from a3jax.model.head import head_logits
from a3jax.model.network import Network, check_context
from a3jax.ordering import Order, gather
from a3jax.ordering.sequence import draw

ROWS = 256
"""Rows whose logits exist at one time."""


class Alternatives(NamedTuple):
    """Of each of T tokens of a text; zeros for the first, which is given."""

    log_probs_T: np.ndarray | Array
    """In nats, of the token that stands there."""
    likeliest_TxK: np.ndarray | Array
    """The K most probable tokens, and how probable they are."""
    log_probs_TxK: np.ndarray | Array


def alternatives(model: Network, tokens: Sequence[int], count: int, allowed: Allowed | None = None) -> Alternatives:
    """The `count` most probable tokens of each place, from those before it, of those that may stand there.

    What may not has -inf, if there are fewer. Raises `UserError` beyond the model's context.
    Programs are compiled for each count, and for each length rounded up to one of few.
    """
    check_context(model, len(tokens))
    drawn = draw(0, tokens, [place == 0 for place in range(len(tokens))], "ar", model.config.seeding)
    rows = len(filled_up([drawn.order]))
    tokens_BxL = np.stack([drawn.tokens_L] * rows)
    order_BxL = jax.tree.map(lambda x: np.stack([x] * rows), drawn.order)
    known = None if not allowed else restriction([allowed], model.config.vocab)
    found = fetched(_alternatives(model.network, tokens_BxL, order_BxL, known, count))
    return Alternatives(*(x[0, : len(tokens)] for x in found))


@functools.partial(jax.jit, static_argnames="count")
def _alternatives(network: Network, tokens_BxL: Array, order: Order, known: Restriction | None, count: int) -> Alternatives:
    """All rows are the same text, which `known` is of."""
    one_stream = one_stream_is_enough(network.config, left_to_right=True)
    found = predict(network.module(), jnp.asarray(tokens_BxL), order, network.compute, one_stream)

    def of_row(row: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        hidden_D, target, place = row
        logits_V = head_logits(hidden_D, found.head_VxD, found.cap)
        if known is not None:
            logits_V = known.on(logits_V[None, None], place[None, None])[0, 0]
        log_prob_V = jax.nn.log_softmax(logits_V)
        top_K, token_K = jax.lax.top_k(log_prob_V, count)
        return log_prob_V[target], token_K, top_K

    B, L = found.target_BxL.shape
    flat = found.hidden_BxLxD.reshape(B * L, -1), found.target_BxL.reshape(-1), found.index_BxL.reshape(-1)
    back = jnp.argsort(found.index_BxL, axis=1)
    predicted_BxL = gather(found.weight_BxL, back) > 0

    def in_place(x: Array) -> Array:
        by_place = gather(x.reshape(B, L, -1), back)
        return jnp.where(predicted_BxL[..., None], by_place, 0)

    log_prob, token, top = map(in_place, jax.lax.map(of_row, flat, batch_size=ROWS))
    return Alternatives(log_prob[..., 0], token, top)
