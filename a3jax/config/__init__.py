"""Every choice a user makes, as frozen dataclasses: the shape of a network, and an experiment."""

from a3jax.config.experiment import Config, check_start, settled
from a3jax.config.model import AdapterStream, Content, Experts, ModelConfig, RopeScaling, Seeding
from a3jax.config.sections import (
    MASKED,
    AdaptConfig,
    DataConfig,
    DiffusionConfig,
    FimConfig,
    GuardConfig,
    MeshConfig,
    Objective,
    OptimizerConfig,
    ProfileConfig,
    SourceConfig,
    TrainConfig,
    WeightAt,
)
from a3jax.curriculum.stage import HeldOutOrder, Stage

__all__ = [
    "MASKED",
    "AdaptConfig",
    "AdapterStream",
    "Config",
    "Content",
    "DataConfig",
    "DiffusionConfig",
    "Experts",
    "FimConfig",
    "GuardConfig",
    "HeldOutOrder",
    "MeshConfig",
    "ModelConfig",
    "Objective",
    "OptimizerConfig",
    "ProfileConfig",
    "RopeScaling",
    "Seeding",
    "SourceConfig",
    "Stage",
    "TrainConfig",
    "WeightAt",
    "check_start",
    "settled",
]
