"""Every choice a user makes, as frozen dataclasses: the shape of a network, and an experiment."""

from a3jax.config.experiment import Config, check_start, settled
from a3jax.config.model import AdapterStream, ModelConfig, RopeScaling, Seeding
from a3jax.config.sections import (
    AdaptConfig,
    DataConfig,
    GuardConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    SourceConfig,
    TrainConfig,
    WeightAt,
)
from a3jax.curriculum.stage import HeldOutOrder, Stage

__all__ = [
    "AdaptConfig",
    "AdapterStream",
    "Config",
    "DataConfig",
    "GuardConfig",
    "HeldOutOrder",
    "MeshConfig",
    "ModelConfig",
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
