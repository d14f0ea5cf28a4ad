"""From a network, tokens and an order to the likelihood of every token: the one forward pass of training and evaluation.

The order is data, so one compiled program serves every order family and group size. One choice alone is made before it is
compiled. Where tokens come one by one from left to right, and queries are seeded by their predecessors, a slot's content is
exactly what the next slot's query would be: one stream is enough, at half the price.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.config import ModelConfig
from a3jax.devices.context_parallel import spread
from a3jax.devices.mesh import constrain
from a3jax.likelihood.fused_loss import SoftTargets, nll_sum, token_nll
from a3jax.likelihood.restriction import Restriction
from a3jax.model.experts import Routing
from a3jax.model.two_stream import Compute, TwoStream
from a3jax.ordering import Masking, Order, gather


def one_stream_is_enough(model: ModelConfig, left_to_right: bool) -> bool:
    """Whether the content stream predicts what the query stream would, one slot earlier.

    `left_to_right` says that tokens come one by one as they stand: `Stage.is_ar` and `Part.is_ar` of orders that are to be
    drawn, `a3jax.ordering.sequence.left_to_right` of one that is.
    """
    return left_to_right and model.seeding != "learned"


class Predictions(NamedTuple):
    """The rows of a forward pass, each of which predicts a token. All but `hidden` are in slot order, B x L."""

    hidden_BxLxD: Array
    """Normalized hidden states, as `a3jax.devices.context_parallel.spread` lays slots."""
    head_VxD: Array
    """Makes logits of them."""
    cap: float | None
    """Within which logits are bent to stay."""
    index_BxL: Array
    """Where in the window stands the token that a row predicts."""
    target_BxL: Array
    """That token."""
    weight_BxL: Array
    """float32: how much its loss counts; 0 where it is given or padding."""
    routing: Routing | None = None
    """What the routers of its layers did, if there are some."""

    def nll_sum(self, chunk: int, soft: SoftTargets | None = None) -> Array:
        """Sum of weight x -log p over all tokens, in nats, a float32 scalar.

        Differentiable. `soft` are of the same rows, and `chunk` is that of `a3jax.likelihood.fused_loss.nll_sum`.
        """
        rows = (self.hidden_BxLxD, self.head_VxD, spread(self.target_BxL), spread(self.weight_BxL))
        return nll_sum(*rows, chunk, soft, self.cap)

    def log_probs(self, chunk: int, restriction: Restriction | None = None) -> Array:
        """log p of every token in nats, B x L float32 in window order, whatever its weight; zero where that is 0.

        At places of a `restriction` it is that among the tokens that may stand there.
        """
        target_BxL, index_BxL = spread(self.target_BxL), spread(self.index_BxL)
        log_prob_BxL = -token_nll(self.hidden_BxLxD, self.head_VxD, target_BxL, chunk, self.cap)
        if restriction is not None:
            rows = (log_prob_BxL, self.hidden_BxLxD, self.head_VxD, target_BxL, index_BxL)
            log_prob_BxL = restriction.rescored(*rows, self.cap)
        log_prob_BxL = jnp.where(spread(self.weight_BxL) > 0, log_prob_BxL, 0.0)
        return gather(log_prob_BxL, jnp.argsort(index_BxL, axis=1))


def predict(module: TwoStream, tokens_BxL: Array, order: Order, compute: Compute, one_stream: bool = False) -> Predictions:
    """Every token of a batch of windows, predicted from those that come before it in the `order` of its window.

    `tokens` are in window order. With `one_stream`, for orders of which `one_stream_is_enough`, the content stream alone is
    computed.
    """
    index_BxL, weight_BxL = order.token_index, order.predicted.astype(jnp.float32)
    if one_stream:  # a slot's content predicts the token of the next
        index_BxL, weight_BxL = (jnp.roll(x, -1, axis=1) for x in (index_BxL, weight_BxL))
    run = module.content_pass if one_stream else module.query_pass
    hidden_BxLxD, routing = run(tokens_BxL, jax.tree.map(spread, order), compute)
    target_BxL = gather(tokens_BxL, index_BxL)
    return Predictions(hidden_BxLxD, *_head(module), index_BxL, target_BxL, weight_BxL, routing)


def predict_masked(module: TwoStream, tokens_BxL: Array, masking: Masking, compute: Compute) -> Predictions:
    """Masked tokens of a batch of windows, each predicted by the row before it from all that this row sees.

    `tokens` are in window order, and true ones: what is masked is not read. Windows are whole on a device (`mesh.context` 1).
    """
    hidden_BxRxD, routing = module.masked_pass(tokens_BxL, masking.rows, compute)
    hidden_BxLxD = constrain(gather(hidden_BxRxD, masking.row), "BxLxD")
    place_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    return Predictions(hidden_BxLxD, *_head(module), place_BxL, tokens_BxL, masking.weight, routing)


def _head(module: TwoStream) -> tuple[Array, float | None]:
    return module.output_matrix, module.config.logit_cap


def log_probs(
    module: TwoStream,
    tokens_BxL: Array,
    order: Order,
    compute: Compute,
    one_stream: bool = False,
    chunk: int = 1024,
    restriction: Restriction | None = None,
) -> Array:
    """log p of every token in nats, B x L float32 in window order; zero where a token is given or padding.

    The arguments are those of `predict`; `chunk` counts rows of one device whose logits exist at one time.
    """
    return predict(module, tokens_BxL, order, compute, one_stream).log_probs(chunk, restriction)


def bound(
    module: TwoStream,
    tokens_BxL: Array,
    masking: Masking,
    compute: Compute,
    chunk: int = 1024,
    restriction: Restriction | None = None,
) -> Array:
    """Each token's share of a draw of the bound, in nats, B x L float32 in window order; zero where a token is not masked.

    The expected sum is a lower bound on the log-likelihood of the tokens that may be masked (`a3jax.ordering.masking`).
    """
    return masking.weight * predict_masked(module, tokens_BxL, masking, compute).log_probs(chunk, restriction)
