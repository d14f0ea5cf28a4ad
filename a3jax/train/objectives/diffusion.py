"""Masked diffusion, of whole documents or block by block: a bound on the negative log-likelihood of a batch, from masks drawn
for it (`a3jax.ordering.masking`).

The source model's own weights and its shift by one are kept, and nothing is added but the vector that masked tokens have in
common (arXiv 2410.17891).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.config import ModelConfig
from a3jax.likelihood.forward import predict_masked
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_masking
from a3jax.train.counts import counted_masked
from a3jax.train.objectives.interface import Batch, Sums, routed


@dataclass(frozen=True)
class Diffusion:
    """The loss of steps of masked diffusion."""

    model: ModelConfig
    compute: Compute
    chunk: int
    """Rows of a device whose logits exist at one time."""
    block: int = 0
    """Tokens of a block, 0 for whole documents."""
    anneal: int = 0
    """Steps after which rows see all that stands on their right; at the first step they see none of it."""

    def sums(
        self, params: nnx.State, batch: Batch, keys_B: Array, teacher: nnx.State | None = None, step: Array | int = 0
    ) -> Sums:
        """See `Objective`. There is no teacher."""
        reach = jnp.minimum(1.0, step / self.anneal) if self.anneal else 1.0
        masking = draw_masking(keys_B, batch["segments"], reach, self.block)
        predictions = predict_masked(nnx.merge(graph(self.model), params), batch["tokens"], masking, self.compute)
        tokens = masking.predicted.sum()
        counts, routers = counted_masked(masking, batch["segments"], self.model), routed(predictions.routing, tokens)
        return Sums(predictions.nll_sum(self.chunk), tokens, counts, routers)
