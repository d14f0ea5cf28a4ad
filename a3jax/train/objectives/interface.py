"""What a step wants of an objective."""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.config import Config
from a3jax.model.experts import Routing
from a3jax.model.two_stream import Compute
from a3jax.train.counts import Counts

Batch = dict[str, Array]


class Sums(NamedTuple):
    """What is summed over the windows of a batch, and over its micro-batches."""

    loss: Array
    """Nats; a float32 scalar."""
    tokens: Array
    """int32: how many tokens the loss is about, by which it is divided: those predicted or, where a draw of them stands for
    all, all of these."""
    counts: Counts[Array]
    """What the windows held."""
    routers: "Routers | None" = None
    """Of a model that has some."""


class Routers(NamedTuple):
    """What routers did, and the load-balancing loss of it, times `Sums.tokens` of each micro-batch."""

    did: Routing
    balance: Array


def routed(routing: Routing | None, tokens: Array) -> Routers | None:
    """Of a batch, or a micro-batch, with so many tokens."""
    return None if routing is None else Routers(routing, routing.balance() * tokens)


class Objective(Protocol):
    """What the steps of a stage minimize: sums over the tokens of a whole batch, whatever its micro-batches."""

    def sums(
        self, params: nnx.State, batch: Batch, keys_B: Array, teacher: nnx.State | None = None, step: Array | int = 0
    ) -> Sums:
        """The loss of `batch`, B x L tokens and segments, each window drawn for with its key; differentiable in `params`.

        `teacher` holds the weights of the source model, which a model that is distilled learns from. `step` is that of the
        curriculum, for what changes from step to step.
        """
        ...


def compute_of(config: Config) -> Compute:
    """How this experiment computes a forward pass that nothing is differentiated through."""
    train = config.train
    return Compute(jnp.dtype(train.compute_dtype), train.attention, attention_block=train.attention_block)
