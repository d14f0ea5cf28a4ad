"""The dense feed-forward of a layer: a gated MLP (SwiGLU, Shazeer, arXiv 2002.05202) that every row goes through."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.config import Activation, ModelConfig
from a3jax.devices.mesh import constrain
from a3jax.model.parameters import Kind

WEIGHTS: dict[str, tuple[str, Kind]] = {
    "gate": ("NxD->F", "matrix"),
    "up": ("NxD->F", "matrix"),
    "down": ("NxF->D", "matrix"),
}
"""Its parameters' axes and kinds."""
BIASES = {"gate_bias": "NxF", "up_bias": "NxF", "down_bias": "NxD"}
"""The axes of those that a model may have."""
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
    "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""Of the gate."""


def gated(config: ModelConfig, gate: Array, up: Array) -> Array:
    """What goes down, elementwise: what goes up, as far as its gate lets it through."""
    if (limit := config.gate_limit) is not None:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit) + 1
    return ACTIVATIONS[config.activation](gate) * up


def mlp(config: ModelConfig, x_BxRxD: Array, project: Callable[[Array, str], Array]) -> Array:
    """Rows through it, B x R x D; `project` multiplies rows with a weight of the layer, by name."""
    hidden_BxRxF = gated(config, project(x_BxRxD, "gate"), project(x_BxRxD, "up"))
    return project(constrain(hidden_BxRxF, "BxRxF"), "down")
