"""What training makes of routers: what the load-balancing loss weighs, and how evenly they spread rows over experts."""

import numpy as np

from a3jax.config import AdaptConfig, ModelConfig
from a3jax.model.experts import Routing
from a3jax.train.trained import changes


def balance_weight(adapt: AdaptConfig, model: ModelConfig) -> float:
    """What the load-balancing loss is multiplied with before it is added to the loss; 0 where no router is trained."""
    if model.experts is None or not changes(adapt, model)(("router",), None):
        return 0.0
    return model.experts.balance if adapt.balance is None else adapt.balance


def facts(routing: Routing) -> dict[str, float]:
    """Of the routers of all layers in a step: how full and how empty experts were.

    `expert_busiest` is the largest number of rows of an expert over that of an even spread, of any layer; `expert_idle` the
    share of all layers' experts that got none.
    """
    chosen_NxX = np.asarray(routing.chosen_X)
    even_Nx1 = np.maximum(chosen_NxX.mean(1, keepdims=True), 1e-9)
    return {"expert_busiest": float((chosen_NxX / even_Nx1).max()), "expert_idle": float((chosen_NxX == 0).mean())}
