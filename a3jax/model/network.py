"""A network in memory: all that its predictions depend on, and nothing of text."""

from dataclasses import dataclass

from flax import nnx

from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.model.two_stream import Compute


@dataclass(frozen=True)
class Network:
    """The shape and weights of a network, and how it is computed."""

    config: ModelConfig
    params: nnx.State
    compute: Compute


def check_context(network: Network, tokens: int) -> None:
    """Raises `UserError` if a text of so many tokens is longer than the network's context."""
    if tokens > network.config.context:
        raise UserError(f"the text with its blanks is {tokens} tokens, the model's context only {network.config.context}")
