"""Which values of an experiment cannot be, alone or together: one line that names the field, and nothing that is returned.

What depends on weights, data or devices is checked where these are opened (`a3jax.train.run`).
"""

import math

from a3jax.config.sections import AdaptConfig, DataConfig, GuardConfig, OptimizerConfig, ProfileConfig, TrainConfig
from a3jax.curriculum.schedule import Schedule
from a3jax.errors import UserError


def check_sections(
    seed: int,
    data: DataConfig,
    optimizer: OptimizerConfig,
    adapt: AdaptConfig,
    train: TrainConfig,
    guard: GuardConfig,
    profile: ProfileConfig,
) -> None:
    """Raise `UserError` for a value that no other makes right, or for two of one section that contradict each other."""
    positive = {
        "data.length": data.length,
        "data.batch": data.batch,
        "train.accumulate": train.accumulate,
        "train.loss_chunk": train.loss_chunk,
        "train.log_every": train.log_every,
        "train.eval_windows": train.eval_windows,
        "train.eval_every": train.eval_every,
        "train.save_every": train.save_every,
        "train.stop_at": 1 if train.stop_at is None else train.stop_at,
        "guard.limit": guard.limit,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    _check_data(data)
    _ = profile.range
    for name, number, high in [
        ("seed", seed, 2**32 - 1),
        ("data.workers", data.workers, None),
        ("train.keep", train.keep, None),
        ("train.keep_best", train.keep_best, None),
        ("train.keep_hours", train.keep_hours or 0, None),
        ("guard.spike", guard.spike or 0, None),
        ("optimizer.peak_lr", optimizer.peak_lr or 0, None),
        ("optimizer.warmup", optimizer.warmup, None),
        ("optimizer.decay", optimizer.decay, 1),
        ("optimizer.final_lr", optimizer.final_lr, 1),
        ("optimizer.weight_decay", optimizer.weight_decay, None),
        ("adapt.distill", adapt.distill, 1),
    ]:
        if not math.isfinite(number):
            raise UserError(f"{name} is {number}; it must be finite")
        if not 0 <= number <= (math.inf if high is None else high):
            raise UserError(f"{name} is {number}; it must be " + ("at least 0" if high is None else f"from 0 to {high}"))
    for name, number in [("optimizer.b1", optimizer.b1), ("optimizer.b2", optimizer.b2)]:
        if not 0 <= number < 1:
            raise UserError(f"{name} is {number}; it must be at least 0 and below 1")
    for name, number in [("optimizer.eps", optimizer.eps), ("optimizer.clip", optimizer.clip)]:
        if not (number > 0 and math.isfinite(number)):
            raise UserError(f"{name} is {number}; it must be above 0")
    if adapt.rank is not None and adapt.rank < 0:
        raise UserError(f"adapt.rank is {adapt.rank}; it must be at least 0")


def check_stages(schedule: Schedule, train: TrainConfig, guard: GuardConfig) -> None:
    """Raise `UserError` for stages whose batches do not go with what else is chosen."""
    early = schedule.may_end_early
    sizes = {schedule.windows(stage) for stage in schedule.trained}
    if len(sizes) > 1 and (early or guard.action == "rollback"):
        what = "a plateau" if early else "guard.action rollback"
        raise UserError(f"{what} can bring batches into another stage than was planned; give all stages one batch")
    batches = {"data.batch": schedule.batch}
    batches |= {f"curriculum.{i}.batch": stage.batch for i, stage in enumerate(schedule.stages) if stage.batch is not None}
    for name, batch in batches.items():
        if batch % train.accumulate:
            raise UserError(f"train.accumulate {train.accumulate} does not divide {name} {batch}")


def _check_data(data: DataConfig) -> None:
    if data.mixture and data.path != DataConfig.path:
        raise UserError(f"data.path is {data.path}, and there is a data.mixture too; give one of them")
    if data.overlap and data.packing != "best_fit":
        raise UserError(f"data.overlap is {data.overlap}; it needs data.packing best_fit")
    if not 0 <= data.overlap < data.length:
        raise UserError(f"data.overlap is {data.overlap}; it must be at least 0 and below data.length {data.length}")
    for i, source in enumerate(data.mixture):
        where, before = f"data.mixture.{i}", -1
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise UserError(f"{where}.weight is {source.weight}; it must be above 0")
        for j, point in enumerate(source.schedule):
            if point.step <= before:
                raise UserError(f"{where}.schedule.{j}.step is {point.step}; it must be at least {before + 1}")
            if not (math.isfinite(point.weight) and point.weight >= 0):
                raise UserError(f"{where}.schedule.{j}.weight is {point.weight}; it must be at least 0")
            before = point.step
        if source.schedule and not any(point.weight for point in source.schedule):
            raise UserError(f"{where}.schedule is 0 at every step; leave the source out")
