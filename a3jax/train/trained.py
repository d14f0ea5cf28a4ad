"""What a run trains: the shape of its model, and which parameters change.

Those that do not have no gradient and no moments, and cost no arithmetic for them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from a3jax.config import AdaptConfig, Config, ModelConfig
from a3jax.errors import UserError
from a3jax.files.strict import nearest
from a3jax.model.adapters import content_is_fixed, source_of
from a3jax.model.parameters import Kind, count, declarations, shapes

GROUPS: dict[str, tuple[Kind, ...]] = {"norms": ("norm",), "embeddings": ("embedding", "head")}
"""What `AdaptConfig.frozen` may say instead of names: all parameters of these kinds."""
RANK = 64
"""Of the adapters that an adaptation begins with, unless it says otherwise (docs/study.md)."""


def trained_model(config: Config, source: ModelConfig) -> ModelConfig:
    """The model that an experiment makes of its source's, or of its own shape.

    Raises `UserError` where the source has other adapters, and for a stage that would train nothing.
    """
    seeding, content = config.seeding or source.seeding, config.content or source.content
    model = dataclasses.replace(source, seeding=seeding, content=content)
    if source.seeding == "two_sided" != seeding:
        raise UserError(f"seeding is {seeding}, but the source has two-sided seeds; leave seeding out")
    if config.adapt.distill and source != source_of(source):
        what = "adapters" if source.adapter_rank else "two-sided seeds"
        raise UserError(f"adapt.distill is given, but the source has {what}; only a model without can be learned from")
    rank, stream = config.adapt.rank, config.adapt.stream
    if source.adapter_rank:
        if rank is not None and (source.adapter_rank, source.adapter_stream) != (rank, stream):
            there = f"adapters of rank {source.adapter_rank} ({source.adapter_stream})"
            raise UserError(f"adapt.rank is {rank} ({stream}), but the source has {there}; leave adapt.rank out")
    elif config.trains_adapters:
        model = dataclasses.replace(model, adapter_rank=RANK if rank is None else rank, adapter_stream=stream)
    if config.objective != "a3":
        _check_one_stream(config, model)
    if content_is_fixed(model) and model.seeding != "learned":
        for i, stage in enumerate(config.schedule.stages):
            if stage.length and stage.is_ar:
                raise UserError(
                    f"curriculum.{i} ({stage.name}) would train nothing: from left to right, adapters of the query stream do "
                    "not apply; leave it out, or give adapt.rank 0 to train all weights"
                )
    return model


def _check_one_stream(config: Config, model: ModelConfig) -> None:
    """Raise `UserError` for a model of which the one stream of other objectives than a3 can make nothing."""
    objective = config.objective
    if model.seeding != "successor":
        kind = model.seeding.replace("_", "-")
        raise UserError(f"the source has {kind} query seeds, but objective {objective} predicts from the token before alone")
    if content_is_fixed(model):
        what = f"the source has adapters of the query stream, which objective {objective} has not"
        raise UserError(f"{what}; start from a model without, or with adapters of both streams")
    if strangers := [token for token in config.fim.tokens if token >= model.vocab]:
        raise UserError(f"fim.tokens has {strangers[0]}, but the model has {model.vocab} embeddings; give smaller ids")


def told(config: Config, model: ModelConfig) -> str:
    """What a run trains, in words, and how to have it otherwise where nobody said it."""
    changed = nnx.filter_state(shapes(model), changes(config.adapt, model))
    numbers = f"{sum(leaf.size for leaf in jax.tree.leaves(changed)):,} of {count(model):,} numbers"
    if not model.adapter_rank:
        return f"training weights, {numbers}"
    stream = "the query stream" if content_is_fixed(model) else "both streams"
    other = " (by default; --adapt.rank 0 trains all weights)" if config.adapt.rank is None and config.trains_adapters else ""
    return f"training adapters of rank {model.adapter_rank} of {stream}, {numbers}{other}"


def changes(adapt: AdaptConfig, model: ModelConfig) -> Callable[[tuple, Any], bool]:
    """An NNX filter of the parameters that change: where there are adapters these and query seeds, else all not frozen.

    Raises `UserError` for a name in `frozen` that the model does not have or that stays anyway, and where nothing is left.
    """
    kinds = _kinds(model)
    names = set(kinds)
    groups = {group: {name for name, kind in kinds.items() if kind in those} for group, those in GROUPS.items()}
    left = {name for name, kind in kinds.items() if kind in ("adapter", "seed")} if model.adapter_rank else names
    for name in adapt.frozen:
        if name not in names | set(GROUPS):
            known = nearest(name, names | set(GROUPS)) or f"; they are {', '.join(sorted(names))}"
            raise UserError(f"adapt.frozen names '{name}', which is no parameter of this model{known}")
        if not left & groups.get(name, {name}):
            raise UserError(
                f"adapt.frozen names '{name}', but only adapters are trained; give adapt.rank 0 to train all weights"
            )
    changed = left - {one for name in adapt.frozen for one in groups.get(name, {name})}
    if not changed:
        raise UserError("adapt.frozen names all parameters; leave some out, or there is nothing to train")
    return lambda path, _: str(path[-1]) in changed


def _kinds(model: ModelConfig) -> dict[str, Kind]:
    """The kind of every parameter, by its own name, without its module's."""
    return {path.rpartition(".")[2]: it.kind for path, it in declarations(model).items()}
