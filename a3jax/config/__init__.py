"""Every choice a user makes, as frozen dataclasses: the shape of a network, and an experiment."""

from a3jax.config.experiment import Config, check_start, settled
from a3jax.config.model import Activation, AdapterStream, Content, Experts, LayerKind, ModelConfig, Norm, Seeding
from a3jax.config.rope import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, Rope, RopeScaling, YarnScaling
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
    "Activation",
    "AdaptConfig",
    "AdapterStream",
    "Config",
    "Content",
    "DataConfig",
    "DiffusionConfig",
    "DynamicScaling",
    "Experts",
    "FimConfig",
    "GuardConfig",
    "HeldOutOrder",
    "LayerKind",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "MeshConfig",
    "ModelConfig",
    "Norm",
    "Objective",
    "OptimizerConfig",
    "ProfileConfig",
    "Rope",
    "RopeScaling",
    "Seeding",
    "SourceConfig",
    "Stage",
    "TrainConfig",
    "WeightAt",
    "YarnScaling",
    "check_start",
    "settled",
]
