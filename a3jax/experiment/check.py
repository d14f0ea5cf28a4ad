"""Which values of an experiment cannot be, alone or together: one line that names the field, and nothing that is returned.

What depends on weights, data or devices is checked where these are opened (`a3jax.train.run`).
"""

import dataclasses
import math

from a3jax.config import Config, DataConfig, settled
from a3jax.errors import UserError
from a3jax.files.places import local
from a3jax.files.strict import flat

LARGEST = 2**31 - 1
"""Of a number that counts anything but tokens: such sizes are int32 on a device."""
LONGEST_NAME = 200
"""Bytes: file systems have room for 255, and something is put behind it."""


def check(config: Config) -> None:
    """Raise `UserError` for values that cannot work together."""
    for place in (config.name, config.source, config.run, config.train.executables):
        local(place or "")
    _check_name(config)
    for name, value in flat(dataclasses.asdict(config)):
        largest = 2**63 - 1 if name.endswith("tokens") else 2**32 - 1 if name == "seed" else LARGEST
        if isinstance(value, int) and abs(value) > largest:
            raise UserError(f"{name} is {_short(str(value))}; it must be at most {largest}")
    positive = {
        "data.length": config.data.length,
        "data.batch": config.data.batch,
        "train.accumulate": config.train.accumulate,
        "train.loss_chunk": config.train.loss_chunk,
        "train.log_every": config.train.log_every,
        "train.eval_windows": config.train.eval_windows,
        "train.eval_every": config.train.eval_every,
        "train.save_every": config.train.save_every,
        "train.stop_at": 1 if config.train.stop_at is None else config.train.stop_at,
        "guard.limit": config.guard.limit,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    stages = settled(config).curriculum
    for name, value, most in [
        ("data.workers", config.data.workers, 2**12),
        ("train.eval_windows", config.train.eval_windows, 2**20),
        ("the curriculum", sum(stage.length for stage in stages), 2**26),
        *((f"curriculum.{i}.batch", stage.batch or 0, 2**20) for i, stage in enumerate(stages)),
        ("data.batch", config.data.batch, 2**20),
    ]:
        if value > most:
            raise UserError(f"{name} is {value}{' steps' if ' ' in name else ''}; it must be at most {most}")
    _check_data(config.data)
    _ = config.profile.range
    optimizer = config.optimizer
    for name, number, high in [
        ("seed", config.seed, 2**32 - 1),
        ("data.workers", config.data.workers, None),
        ("train.keep", config.train.keep, None),
        ("train.keep_best", config.train.keep_best, None),
        ("train.keep_hours", config.train.keep_hours or 0, None),
        ("guard.spike", config.guard.spike or 0, None),
        ("optimizer.peak_lr", config.peak_lr, None),
        ("optimizer.warmup", optimizer.warmup, None),
        ("optimizer.decay", optimizer.decay, 1),
        ("optimizer.final_lr", optimizer.final_lr, 1),
        ("optimizer.weight_decay", optimizer.weight_decay, None),
        ("adapt.distill", config.adapt.distill, 1),
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
    early = any(stage.plateau for stage in stages)
    sizes = {config.at(stage).data.batch for stage in stages if stage.length}
    if len(sizes) > 1 and (early or config.guard.action == "rollback"):
        what = "a plateau" if early else "guard.action rollback"
        raise UserError(f"{what} can bring batches into another stage than was planned; give all stages one batch")
    batches = {"data.batch": config.data.batch}
    batches |= {f"curriculum.{i}.batch": stage.batch for i, stage in enumerate(stages) if stage.batch is not None}
    for name, batch in batches.items():
        if batch % config.train.accumulate:
            raise UserError(f"train.accumulate {config.train.accumulate} does not divide {name} {batch}")
    if config.adapt.distill and config.source is None:
        raise UserError(f"adapt.distill is {config.adapt.distill}, but there is no source to learn from; give source")
    if config.adapt.rank is not None and config.adapt.rank < 0:
        raise UserError(f"adapt.rank is {config.adapt.rank}; it must be at least 0")
    if config.source is None and config.model is None:
        raise UserError("give source (an imported model), or model (random weights of that shape)")


def _check_name(config: Config) -> None:
    """A name is that of one folder: `runs/NAME`, or `sweeps/NAME`."""
    name = config.name
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable():
        raise UserError(f"name is {_short(repr(name))}; it must be the name of a folder, without a slash; --run takes a path")
    if (size := len(name.encode())) > LONGEST_NAME:
        raise UserError(f"name is {_short(repr(name))}, {size} bytes long; it must be at most {LONGEST_NAME}")
    if config.run is not None and not (config.run.strip() and config.run.isprintable()):
        raise UserError(f"run is {_short(repr(config.run))}; it must be the path of a folder; without it, that is runs/NAME")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."


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
