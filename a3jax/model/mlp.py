"""The dense feed-forward of a layer: a gated MLP (SwiGLU, Shazeer, arXiv 2002.05202) that every row goes through."""

from collections.abc import Callable

import jax
from jax import Array

from a3jax.config import Activation
from a3jax.devices.mesh import constrain
from a3jax.model.parameters import Kind

WEIGHTS: dict[str, tuple[str, Kind]] = {
    "gate": ("NxD->F", "matrix"),
    "up": ("NxD->F", "matrix"),
    "down": ("NxF->D", "matrix"),
}
"""Its parameters' axes and kinds."""
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}
"""Of the gate, whose product with `up` goes down."""


def mlp(x_BxRxD: Array, activate: Callable[[Array], Array], project: Callable[[Array, str], Array]) -> Array:
    """Rows through it, B x R x D; `project` multiplies rows with a weight of the layer, by name."""
    hidden_BxRxF = activate(project(x_BxRxD, "gate")) * project(x_BxRxD, "up")
    return project(constrain(hidden_BxRxF, "BxRxF"), "down")
