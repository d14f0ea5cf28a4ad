"""What is learned: one file for each objective (docs/objectives.md), all with one interface."""

from a3jax.config import Config, ModelConfig, Stage
from a3jax.model.two_stream import Compute
from a3jax.train.objectives.any_order import AnyOrder
from a3jax.train.objectives.diffusion import Diffusion
from a3jax.train.objectives.fim import FillInTheMiddle
from a3jax.train.objectives.interface import Batch, Objective, Sums, compute_of

__all__ = ["Batch", "Objective", "Sums", "compute_of", "objective_of"]


def objective_of(config: Config, model: ModelConfig, stage: Stage, compute: Compute) -> Objective:
    """That of one stage's steps."""
    chunk = config.train.loss_chunk
    if config.mask_block is not None:
        return Diffusion(model, compute, chunk, config.mask_block, config.diffusion.anneal)
    in_order = AnyOrder(model, stage, compute, chunk, config.adapt.distill)  # objective ar is its simplest case
    return FillInTheMiddle(in_order, config.fim) if config.objective == "fim" else in_order
