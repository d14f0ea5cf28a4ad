"""One experiment, as frozen dataclasses: a Python file in `experiments/` returns a `Config`, the command line overrides its
fields by dotted name, and the run folder keeps it as JSON (`a3jax.files.strict`). One that exists is valid
(`a3jax.config.check`).
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path

from a3jax.config.check import check_names, check_objective, check_options, check_sections, check_sizes, check_stages
from a3jax.config.model import Content, ModelConfig, Seeding
from a3jax.config.sections import (
    AdaptConfig,
    DataConfig,
    DiffusionConfig,
    FimConfig,
    GuardConfig,
    MeshConfig,
    Objective,
    OptimizerConfig,
    ProfileConfig,
    TrainConfig,
)
from a3jax.curriculum.presets import direct
from a3jax.curriculum.schedule import Schedule, settle
from a3jax.curriculum.stage import Stage
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.files.strict import check_types


@dataclass(frozen=True)
class Config:
    """One experiment. Raises `UserError` for values that cannot be, alone or together."""

    name: str
    """The run folder is `runs/NAME` unless `run` says otherwise."""
    source: str | None = None
    """A folder written by `a3jax import`, or what that reads; None to start from random weights of shape `model`."""
    model: ModelConfig | None = None
    """The shape of random weights; beside a source its own shape, from which `a3jax plan` works before it is there."""
    seeding: Seeding | None = None
    """How queries start; None keeps the source's (`successor` after import)."""
    content: Content | None = None
    """Up to where content rows see; None keeps the source's (`group` after import)."""
    run: str | None = None
    seed: int = 0
    objective: Objective = "a3"
    """What is learned (docs/objectives.md): any-order prediction in two streams; or, for comparison, what one stream learns:
    masked diffusion, of whole documents or block by block, filling in the middle of rearranged documents, or plain left to
    right."""
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: tuple[Stage, ...] = direct(1000)
    ar_share: float = 0.0
    """Share of the windows of every stage that are read from left to right, one token at a time, besides those that the
    stage itself draws so: what keeps part of the autoregressive ability where all weights are trained. Adapters of the query
    stream learn nothing from them."""
    total_steps: int | None = None
    """Optimizer steps of the whole curriculum, where stages are fractions of it."""
    total_tokens: int | None = None
    """The same in tokens of full windows, padding included."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    fim: FimConfig = field(default_factory=FimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_names(self.name, self.source, self.run, self.train.executables)
        check_sizes(dataclasses.asdict(self))
        check_sections(self.seed, self.data, self.optimizer, self.adapt, self.train, self.guard, self.profile)
        check_stages(self.schedule, self.train, self.guard)
        check_objective(self.objective, self.schedule, self.ar_share, self.seeding, self.content, self.adapt, self.train)
        check_options(self.objective, self.diffusion, self.fim, self.data)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The curriculum counted in steps."""
        stages = settle(
            self.curriculum, self.data.batch, self.data.length, self.total_steps, self.total_tokens, self.ar_share
        )
        return Schedule(stages, self.data.batch)

    @property
    def trains_adapters(self) -> bool:
        """Whether weights stay as they are, and adapters change."""
        if self.adapt.rank is not None:
            return self.adapt.rank > 0
        if self.model is not None and self.model.adapter_rank:
            return True
        return self.source is not None and self.objective == "a3"

    @property
    def peak_lr(self) -> float:
        """The optimizer's own, or the default of what is trained."""
        if self.optimizer.peak_lr is not None:
            return self.optimizer.peak_lr
        return 2e-4 if self.trains_adapters else 2e-5

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole curriculum."""
        return self.schedule.steps

    @property
    def mask_block(self) -> int | None:
        """Tokens of a block of masked diffusion, 0 where it has none; None for objectives that mask nothing."""
        return {"diffusion": 0, "block_diffusion": self.diffusion.block}.get(self.objective)

    def check_orders(self) -> None:
        """Raise `UserError` for an objective that draws masks in place of orders, which then cannot be shown."""
        if self.mask_block is not None:
            raise UserError(f"objective {self.objective} draws masks and no orders; those of a3, fim and ar can be shown")

    def stage_name(self, stage: Stage) -> str:
        """What logs and records call it: by its orders, or by an objective that has none."""
        return stage.name if self.objective == "a3" else self.objective

    @property
    def batches(self) -> tuple[int, ...]:
        """Windows per optimizer step: of the experiment, and of stages that have a batch of their own."""
        return tuple(dict.fromkeys([self.data.batch, *(stage.batch for stage in self.curriculum if stage.batch is not None)]))

    @property
    def end(self) -> int:
        """The step after which training ends: the last of the curriculum, or `train.stop_at` before it."""
        return min(self.steps, self.train.stop_at or self.steps)

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its checkpoints, metrics and configuration."""
        return place(self.run or f"runs/{self.name}")


def settled(config: Config) -> Config:
    """The experiment with what follows from other fields written out, its stages in steps and its learning rate.

    Run folders keep experiments so, and compare them.
    """
    return dataclasses.replace(
        config,
        curriculum=config.schedule.stages,
        ar_share=0.0,
        total_steps=None,
        total_tokens=None,
        optimizer=dataclasses.replace(config.optimizer, peak_lr=config.peak_lr),
    )


def check_start(config: Config) -> None:
    """Raise `UserError` for an experiment that does not say what it starts from; a command line may still add that."""
    if config.source is None and config.model is None:
        raise UserError("give source (an imported model), or model (random weights of that shape)")
    if config.adapt.distill and config.source is None:
        raise UserError(f"adapt.distill is {config.adapt.distill}, but there is no source to learn from; give source")
