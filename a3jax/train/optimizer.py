"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) with clipping, warm-up and a schedule, from Optax."""

import jax
import optax

from a3jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `peak`, then constant, cosine, or constant with a linear end (WSD)."""
    warmup = min(config.warmup, steps)
    final = peak * config.final_lr
    rest = max(1, steps - warmup)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, config.final_lr)
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


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Clipped AdamW at a learning rate by step; only matrices decay, not norms, biases and the query seed."""

    def decays(params: optax.Params) -> optax.Params:
        matrices = ("embedding", "head", "query", "key", "value", "output", "gate", "up", "down")
        return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) in matrices, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decays),
    )


def _name(path: tuple) -> str:
    """The parameter's own name: the last key of its path that is one."""
    return [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
