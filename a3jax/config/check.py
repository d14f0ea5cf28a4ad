"""Which values of an experiment cannot be, alone or together: one line that names the field, and nothing that is returned.

What depends on weights, data or devices is checked where these are opened (`a3jax.train.run`).
"""

import math
from collections.abc import Mapping
from typing import Any

from a3jax.config.model import Content, Seeding
from a3jax.config.sections import (
    MASKED,
    AdaptConfig,
    DataConfig,
    DiffusionConfig,
    FimConfig,
    GuardConfig,
    Objective,
    OptimizerConfig,
    ProfileConfig,
    TrainConfig,
)
from a3jax.curriculum.schedule import Schedule
from a3jax.errors import UserError
from a3jax.files.places import local, place
from a3jax.files.strict import flat

LARGEST = 2**31 - 1
"""Of a number that counts anything but tokens: such sizes are int32 on a device."""
SLOWEST = 0.99
"""Decay of second moments in bfloat16, which has 8 bits: at 0.999 they could only grow, as 1/1000 less is rounded away."""
LONGEST_NAME = 200
"""Bytes: file systems have room for 255, and something is put behind it."""


def check_names(name: str, source: str | None, run: str | None, executables: str | None) -> None:
    """Raise `UserError` for what cannot be the name of a folder, or its path."""
    for path in (source, run):
        place(path or "")
    for path in (name, executables):
        local(path or "")
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable():
        raise UserError(f"name is {_short(repr(name))}; it must be the name of a folder, without a slash; --run takes a path")
    if (size := len(name.encode())) > LONGEST_NAME:
        raise UserError(f"name is {_short(repr(name))}, {size} bytes long; it must be at most {LONGEST_NAME}")
    if run is not None and not (run.strip() and run.isprintable()):
        raise UserError(f"run is {_short(repr(run))}; it must be the path of a folder; without it, that is runs/NAME")


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Raise `UserError` for a whole number, anywhere in an experiment's fields, that no device can count to."""
    for name, value in flat(fields):
        largest = 2**63 - 1 if name.endswith("tokens") else 2**32 - 1 if name == "seed" else LARGEST
        if isinstance(value, int) and abs(value) > largest:
            raise UserError(f"{name} is {_short(str(value))}; it must be at most {largest}")


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
    _check_most({"data.workers": (data.workers, 2**12), "train.eval_windows": (train.eval_windows, 2**20)})
    _check_data(data)
    _ = profile.range
    for name, number, high in [
        ("seed", seed, 2**32 - 1),
        ("data.workers", data.workers, None),
        ("train.keep", train.keep, None),
        ("train.keep_best", train.keep_best, None),
        ("train.keep_hours", train.keep_hours or 0, None),
        ("train.save_minutes", train.save_minutes or 0, None),
        ("guard.spike", guard.spike or 0, None),
        ("optimizer.peak_lr", optimizer.peak_lr or 0, None),
        ("optimizer.warmup", optimizer.warmup, None),
        ("optimizer.decay", optimizer.decay, 1),
        ("optimizer.final_lr", optimizer.final_lr, 1),
        ("optimizer.weight_decay", optimizer.weight_decay, None),
        ("adapt.balance", adapt.balance or 0, None),
        ("adapt.distill", adapt.distill, 1),
    ]:
        if not math.isfinite(number):
            raise UserError(f"{name} is {number}; it must be finite")
        if not 0 <= number <= (math.inf if high is None else high):
            raise UserError(f"{name} is {number}; it must be " + ("at least 0" if high is None else f"from 0 to {high}"))
    for name, number in [("optimizer.b1", optimizer.b1), ("optimizer.b2", optimizer.b2)]:
        if not 0 <= number < 1:
            raise UserError(f"{name} is {number}; it must be at least 0 and below 1")
    if optimizer.moments == "bfloat16" and optimizer.name == "adafactor":
        raise UserError("optimizer.moments is bfloat16, but adafactor keeps no moments of elements; leave it out")
    if optimizer.moments == "bfloat16" and optimizer.b2 > SLOWEST and optimizer.name != "lion":
        what = f"optimizer.b2 is {optimizer.b2}, whose small steps would be rounded away in optimizer.moments bfloat16"
        raise UserError(f"{what}; it must be at most {SLOWEST}, or moments float32")
    for name, number in [("optimizer.eps", optimizer.eps), ("optimizer.clip", optimizer.clip)]:
        if not (number > 0 and math.isfinite(number)):
            raise UserError(f"{name} is {number}; it must be above 0")
    if train.attention_block is not None and (train.attention_block < 128 or train.attention_block % 128):
        raise UserError(f"train.attention_block is {train.attention_block}; it must be a multiple of 128")
    if adapt.rank is not None and adapt.rank < 0:
        raise UserError(f"adapt.rank is {adapt.rank}; it must be at least 0")


def check_stages(schedule: Schedule, train: TrainConfig, guard: GuardConfig) -> None:
    """Raise `UserError` for stages whose batches do not go with what else is chosen."""
    most = {"the curriculum": (schedule.steps, 2**26)}
    most |= {f"curriculum.{i}.batch": (stage.batch or 0, 2**20) for i, stage in enumerate(schedule.stages)}
    _check_most(most | {"data.batch": (schedule.batch, 2**20)})
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


def check_objective(
    objective: Objective,
    schedule: Schedule,
    ar_share: float,
    seeding: Seeding | None,
    content: Content | None,
    adapt: AdaptConfig,
    train: TrainConfig,
) -> None:
    """Raise `UserError` for what means nothing with the objective: all but a3 have one stream, and no orders."""
    plateaus = {f"curriculum.{i}.plateau.order": stage.plateau for i, stage in enumerate(schedule.stages)}
    judges = {name: plateau.order for name, plateau in plateaus.items() if plateau}
    judges |= {"train.best_order": train.best_order} if train.keep_best else {}
    for name, figure in judges.items():
        if objective in MASKED and figure not in ("ar", "bound"):
            raise UserError(f"{name} is {figure}, but objective {objective} is evaluated by bound and ar; give one of these")
        if objective not in MASKED and figure == "bound":
            raise UserError(f"{name} is bound, which belongs to masked diffusion, and the objective is {objective}")
    if adapt.distill and schedule.slack:
        raise UserError(f"adapt.distill is {adapt.distill}, but no teacher knows the end of an open blank; leave it out")
    if objective == "a3":
        return
    for i, stage in enumerate(schedule.stages):
        if not stage.is_ar:
            what = f"curriculum.{i} ({stage.name}) draws orders, and objective {objective} has none"
            raise UserError(f"{what}; give its stages a length alone, such as Stage(1000)")
    if ar_share:
        raise UserError(f"ar_share is {ar_share}, which belongs to objective a3, and the objective is {objective}")
    if seeding not in (None, "successor"):
        what = f"seeding is {seeding}, but objective {objective} predicts from the token before alone"
        raise UserError(f"{what}; leave seeding out")
    if content is not None:
        raise UserError(f"content is {content}, but objective {objective} has no groups; leave content out")
    if adapt.rank and adapt.stream == "query":
        what = f"adapt.rank is {adapt.rank} (query), but objective {objective} has one stream"
        raise UserError(f"{what}; give adapt.stream both, or adapt.rank 0 to train all weights")
    if adapt.distill and objective != "ar":
        raise UserError(f"adapt.distill is {adapt.distill}, but objective {objective} has no teacher; leave it out")


def check_options(objective: Objective, diffusion: DiffusionConfig, fim: FimConfig, data: DataConfig) -> None:
    """Raise `UserError` for options of another objective, and for values of its own that cannot be."""
    sections = {"diffusion": (diffusion, DiffusionConfig(), MASKED), "fim": (fim, FimConfig(), ("fim",))}
    for name, (section, plain, owners) in sections.items():
        if section != plain and objective not in owners:
            raise UserError(f"{name} is given options, but the objective is {objective}; leave them out, or choose {name}")
    if diffusion.anneal and objective == "block_diffusion":
        raise UserError(f"diffusion.anneal is {diffusion.anneal}, which belongs to objective diffusion; set it to 0")
    if diffusion.block != DiffusionConfig.block and objective == "diffusion":
        raise UserError(f"diffusion.block is {diffusion.block}, which belongs to objective block_diffusion; leave it out")
    if diffusion.block < 1:
        raise UserError(f"diffusion.block is {diffusion.block}; it must be at least 1")
    if diffusion.anneal < 0:
        raise UserError(f"diffusion.anneal is {diffusion.anneal}; it must be at least 0")
    if objective != "fim":
        return
    for field, share in [("rate", fim.rate), ("spm", fim.spm)]:
        if not 0 <= share <= 1:
            raise UserError(f"fim.{field} is {share}; it must be from 0 to 1")
    if len(set(fim.tokens)) != 3 or len(fim.tokens) != 3 or min(fim.tokens) < 0:
        given = ", ".join(map(str, fim.tokens)) or "missing"
        raise UserError(f"fim.tokens is {given}; give three ids, of the tokens before the prefix, the suffix and the middle")
    if data.overlap:
        raise UserError(f"data.overlap is {data.overlap}, but objective fim rearranges documents whole; set it to 0")


def _check_most(values: Mapping[str, tuple[int, int]]) -> None:
    """Raise `UserError` for a value above the most that it can be."""
    for name, (value, most) in values.items():
        if value > most:
            raise UserError(f"{name} is {value}{' steps' if ' ' in name else ''}; it must be at most {most}")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."


def _check_data(data: DataConfig) -> None:
    if data.mixture and data.path != DataConfig.path:
        raise UserError(f"data.path is {data.path}, and there is a data.mixture too; give one of them")
    if data.mixture and data.chat:
        raise UserError("data.chat belongs to data.path, and there is a data.mixture; give chat in its sources")
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
