"""A network in memory: all that its predictions depend on, and nothing of text."""

import functools
from dataclasses import dataclass

import jax
from flax import nnx

from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute, TwoStream


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "compute"])
@dataclass(frozen=True)
class Network:
    """The shape and weights of a network, and how it is computed.

    A pytree whose leaves are the weights, so that compiled functions take it as one argument; for another shape, or another
    way to compute, they are compiled anew.
    """

    config: ModelConfig
    params: nnx.State
    compute: Compute

    @property
    def network(self) -> "Network":
        """The network alone, whatever else a model knows of itself: what compiled functions take."""
        return Network(self.config, self.params, self.compute)

    def module(self) -> TwoStream:
        """The weights as Flax's module, whose methods compute."""
        return nnx.merge(graph(self.config), self.params)


def check_context(network: Network, tokens: int) -> None:
    """Raises `UserError` if a text of so many tokens is longer than the network's context."""
    if tokens > network.config.context:
        raise UserError(f"the text with its blanks is {tokens} tokens, the model's context only {network.config.context}")
