"""Any-order prediction: the negative log-likelihood of a batch in orders drawn for it, or in part that of a teacher.

A stage that draws nothing but left to right is plain autoregression.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.config import ModelConfig, Stage
from a3jax.devices.context_parallel import place, spread
from a3jax.devices.mesh import BATCH, constrain, lay
from a3jax.likelihood.forward import Predictions, one_stream_is_enough, predict
from a3jax.likelihood.fused_loss import SoftTargets
from a3jax.model.adapters import source_of
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import Order, arrange, draw_mixture, gather
from a3jax.train.counts import counted
from a3jax.train.objectives.interface import Batch, Sums, routed


@dataclass(frozen=True)
class AnyOrder:
    """The loss of one stage's steps."""

    model: ModelConfig
    stage: Stage
    compute: Compute
    chunk: int
    """Rows of a device whose logits exist at one time."""
    distill: float = 0.0
    """The share of the loss that is measured against a teacher."""

    def sums(
        self, params: nnx.State, batch: Batch, keys_B: Array, teacher: nnx.State | None = None, step: Array | int = 0
    ) -> Sums:
        """See `Objective`: each window in an order drawn with its key."""
        tokens_BxL, segment_BxL = batch["tokens"], batch["segments"]
        drawn = (self.stage.parts, self.model.seeding, batch.get("weights"), batch.get("sizes"))
        order = draw_mixture(keys_B, segment_BxL, *drawn)
        if self.stage.slack_of_parts:
            tokens_BxL = order.end_blanks(tokens_BxL, self.model.end_tokens)
        one_stream = one_stream_is_enough(self.model, self.stage.is_ar)
        predictions = predict(nnx.merge(graph(self.model), params), tokens_BxL, order, self.compute, one_stream)
        soft = None if teacher is None else self._soft_targets(teacher, tokens_BxL, segment_BxL, predictions)
        counts = counted(order, segment_BxL, self.model)
        routers = routed(predictions.routing, counts.predicted)
        return Sums(predictions.nll_sum(self.chunk, soft), counts.predicted, counts, routers)

    def _soft_targets(self, teacher: nnx.State, tokens_BxL: Array, segment_BxL: Array, student: Predictions) -> SoftTargets:
        """What the teacher, reading from left to right, says of the same tokens, in rows laid out as the student's."""
        module = nnx.merge(graph(source_of(self.model)), teacher)
        in_order = _left_to_right(jnp.abs(segment_BxL))
        taught = predict(module, tokens_BxL, in_order, self.compute._replace(remat="none"), one_stream=True)
        row_BxL = gather(jnp.argsort(taught.index_BxL, axis=1), student.index_BxL)
        # A row's teacher may be on any device along `context`, so these hold their windows' hidden states whole for once.
        whole_BxLxD = lay(taught.hidden_BxLxD, BATCH)
        hidden_BxLxD = gather(whole_BxLxD, spread(place(row_BxL, tokens_BxL.shape[1])))
        return SoftTargets(constrain(hidden_BxLxD, "BxLxD"), taught.head_VxD, self.distill)


def _left_to_right(segment_BxL: Array) -> Order:
    """Windows one token at a time as they stand."""
    place_L = jnp.arange(segment_BxL.shape[1])
    return jax.vmap(lambda segment_L: arrange(place_L, jnp.zeros_like(place_L, bool), segment_L, "successor"))(segment_BxL)
