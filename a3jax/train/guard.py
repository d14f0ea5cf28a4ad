"""Bad steps: a loss or a gradient that is not finite, or a loss that jumps above those before it.

Whether a step is bad is decided inside it, on all devices alike, and a bad step changes neither parameters nor moments;
counts go on, so that the learning rate follows the step. The optimizer is told, and leaves its moments as they are
(`a3jax.train.optimizer`). What it means for the run says `asks_for_checkpoint`, once the host has read the step.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from a3jax.config import GuardConfig
from a3jax.errors import UserError

MEMORY = 0.95
"""The running mean keeps this share of itself per step, once there are enough steps."""
ENOUGH = 10
"""Steps of one kind of stage before a jump can be told."""


class GuardedState(NamedTuple):
    """The optimizer's state, and the losses seen."""

    optimizer: optax.OptState
    mean: Array
    """Of the losses of good steps, nats."""
    good: Array
    """How many there were since the kind of stage changed."""
    stage: Array
    """Which kind that is."""


def init(optimizer: optax.GradientTransformation, params: nnx.State) -> GuardedState:
    """Nothing seen yet."""
    return GuardedState(optimizer.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32))


def with_new(optimizer: optax.GradientTransformation, state: GuardedState, params: nnx.State, when: Array) -> GuardedState:
    """The state with the optimizer's begun anew, `when` so; the losses seen stay."""
    return state._replace(optimizer=optax.tree.where(when, optimizer.init(params), state.optimizer))


def update(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: nnx.State,
    state: GuardedState,
    params: nnx.State,
    loss: Array,
    gradient_norm: Array,
    stage: Array,
    learned: Array,
    config: GuardConfig,
) -> tuple[nnx.State, GuardedState, Array]:
    """The updates, the new state, and whether the step is bad. `stage` numbers its kind.

    Updates are zero, and moments stay, in a bad step and in one in which there was nothing to be `learned`.
    """
    good = jnp.where(state.stage == stage, state.good, 0)
    bad = ~jnp.isfinite(loss) | ~jnp.isfinite(gradient_norm)
    if config.spike is not None:
        bad |= (good >= ENOUGH) & (loss > state.mean + config.spike)
    idle = bad | ~learned
    updates, new = optimizer.update(grads, state.optimizer, params, norm=gradient_norm, bad=idle)
    updates = jax.tree.map(lambda u: jnp.where(idle, jnp.zeros_like(u), u), updates)
    weight = jnp.maximum(1 / (good + 1), 1 - MEMORY)
    mean = jnp.where(idle, state.mean, jnp.where(good == 0, loss, state.mean + weight * (loss - state.mean)))
    return updates, GuardedState(new, mean, jnp.where(idle, good, good + 1), stage), bad


def asks_for_checkpoint(config: GuardConfig, step: int, loss: float, gradient_norm: float, in_a_row: int) -> bool:
    """Whether a run is to go on from its last checkpoint after a bad step, which is so many in a row.

    Raises `UserError` if that is the end of the run.
    """
    jump = math.isfinite(loss) and math.isfinite(gradient_norm)
    what = f"step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}"
    what += f", more than {config.spike} above the mean of those before it" if jump else ""
    if config.action == "stop":
        raise UserError(
            f"{what}; the run stopped before saving it. Lower optimizer.peak-lr, or give --guard.action skip or "
            f"rollback, and run again: it goes on from the last checkpoint"
        )
    if config.action == "skip" and in_a_row > config.limit:
        raise UserError(f"{what}; it is bad step {in_a_row} in a row, more than guard.limit {config.limit}")
    return config.action == "rollback"
