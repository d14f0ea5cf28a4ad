"""Optimizers with clipping, warm-up and a schedule, from parts of Optax: AdamW (Loshchilov & Hutter, arXiv 1711.05101) and
others by name (`a3jax.train.scaling`).

Two parts are our own, equal to Optax's in what they compute and in their states, for what the compiler makes of them: a
step that is one pass over gradients, moments and parameters, each moment overwritten in place and no gradient copied.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from a3jax.config import OptimizerConfig
from a3jax.model.parameters import Kind, declared
from a3jax.train import scaling

DECAYING: frozenset[Kind] = frozenset(("matrix", "router", "expert", "embedding", "head", "adapter"))
"""Kinds of parameters that weight decay acts on. An adapter's two factors are matrices as others are, and PEFT with PyTorch's
AdamW decays them too; as their product is what is added to a weight, they decay towards the source model."""


def schedule_of(config: OptimizerConfig, peak: float, stages: Sequence[int]) -> optax.Schedule:
    """Learning rate by step of a curriculum whose stages have so many steps: one schedule over all, or one for each."""
    if not config.per_stage:
        return schedule(config, peak, sum(stages))
    return optax.join_schedules([schedule(config, peak, steps) for steps in stages if steps], first_steps(stages)[1:])


def first_steps(stages: Sequence[int]) -> list[int]:
    """The first step of every stage that has one, of stages of so many steps."""
    return [begin for begin, steps in zip(itertools.accumulate(stages, initial=0), stages) if steps]


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `peak`, then constant, cosine, linear, or constant with a linear end (WSD)."""
    warmup = min(config.warmup, steps)
    final = peak * config.final_lr
    rest = max(1, steps - warmup)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, config.final_lr)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, final, rest)
    elif config.schedule == "wsd":
        decay = max(1, min(rest, round(config.decay * steps)))
        after = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [rest - decay]
        )
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """The experiment's, clipped, at a learning rate by step; matrices decay (`DECAYING`), not norms, biases and the seed."""

    def decays(params: optax.Params) -> optax.Params:
        return jax.tree.map(_decays, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    return optax.chain(
        _clip(config.clip),
        optax.chain(
            _scaling(config),
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.scale_by_learning_rate(rate),
        ),
    )


def _scaling(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """From gradients to updates of a learning rate of -1. Every leaf of a state that goes with a parameter is declared."""
    dtype = jnp.dtype(config.moments)
    adam = _adam(config.b1, config.b2, config.eps, dtype)
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return scaling.unless_bad(optax.scale_by_lion(config.b1, config.b2, dtype))
    if config.name == "muon":
        return scaling.muon(adam, config.eps, dtype)
    return scaling.adafactor()


def moment_bytes(config: OptimizerConfig) -> int:
    """Bytes a trained parameter that an optimizer keeps at least, but for what does not grow with their number."""
    return {"adamw": 2, "lion": 1, "muon": 1, "adafactor": 0}[config.name] * jnp.dtype(config.moments).itemsize


def _decays(leaf: nnx.Variable | Array) -> nnx.Variable | bool:
    """Whether a parameter decays, in its place; an array that was declared nothing does not."""
    return leaf.replace(declared(leaf).kind in DECAYING) if isinstance(leaf, nnx.Variable) else False


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm; `norm` where it is known, so that no reduction wants the scaled gradients in memory."""

    def update(grads: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1, limit / (optax.tree.norm(grads) if norm is None else norm))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _adam(b1: float, b2: float, eps: float, dtype: jnp.dtype) -> optax.GradientTransformationExtraArgs:
    """Adam with moments of a dtype, which stay where the step is `bad`; all arithmetic is in float32.

    What the update is made of are the moments as they will be kept: made of others, old and new ones would both be needed
    at once, and copied.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *(optax.tree.zeros_like(params, dtype=dtype) for _ in "mv"))

    def kept(moment: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), moment)

    def update(grads: Any, state: Any, params: Any = None, *, bad: Array | bool = False, **_: Any) -> tuple[Any, Any]:
        mean = optax.tree.where(bad, state.mu, kept(optax.tree.update_moment(grads, state.mu, b1, 1)))
        square = optax.tree.where(bad, state.nu, kept(optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)))
        count = optax.safe_increment(state.count)
        updates = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(optax.tree.cast(mean, jnp.float32), b1, count),
            optax.tree.bias_correction(optax.tree.cast(square, jnp.float32), b2, count),
        )
        return updates, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformationExtraArgs(init, update)
