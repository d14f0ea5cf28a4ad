"""The study that settles the defaults (docs/study.md): curricula and what is trained, on a small model of our own.

a3jax sweep run study --at-once 2        # after the commands of experiments/study_base.py
a3jax sweep report sweeps/study
"""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import paper
from a3jax.stage import Part
from a3jax.sweep import Trials, chain, product, seeds

STEPS = 75


def experiment() -> Config:
    """The paper's schedule, over 0.3 million bytes: a twentieth of what the base model was trained on."""
    return Config(
        name="study",
        source="runs/study_base",
        data=DataConfig(path="data/study", length=256, batch=16),
        curriculum=paper(STEPS),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=5),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=STEPS, save_every=STEPS, eval_windows=64),
    )


CURRICULA = {
    "ar": (Stage(STEPS),),
    "direct": (Stage(STEPS, "random", 4),),
    "short": (Stage(10, "in_order", 4), Stage(STEPS - 10, "random", 4)),
    "ramped": (
        Stage(15),
        Stage(15, "in_order", 2, ramp=10),
        Stage(15, "in_order", 4, ramp=10),
        Stage(15, "random", 4, ramp=10),
        Stage(15, "random", 8, ramp=10),
    ),
    "subsets": (Stage(STEPS, mixture=(Part(1.0, "random", 4, sizes="geometric"),)),),
    "ones": (Stage(STEPS, "random", 1),),
    "eights": (Stage(STEPS, "random", 8),),
    "half": (Stage(STEPS // 2, "random", 4),),
    "shorter": (Stage(53, "random", 4),),
}
"""`direct` is the order that is asked for in the end from the first step; `half` takes half of the steps. With adapters of
rank 16 in the query stream, `shorter` takes half of the FLOPs of the paper's schedule with everything trained."""


def curricula(*names: str) -> dict[str, dict[str, tuple[Stage, ...]]]:
    """Some of them, as a field of a sweep."""
    return {"curriculum": {name: CURRICULA[name] for name in names}}


def sweep() -> Trials:
    """Three seeds of every setting, the most telling settings first."""
    direct, half = curricula("direct"), curricula("half")
    rate, query, both = {"optimizer.peak_lr": [4e-3]}, {"adapt.stream": ["query"]}, {"adapt.stream": ["both"]}
    return product(
        chain(
            product(),
            curricula("ar", "direct"),
            {"seeding": ["learned"]},
            product(direct, {"adapt.rank": [16]}, query, rate),
            product(direct, {"ar_share": [0.25]}),
            product(half, {"adapt.rank": [16]}, query, rate),
            product(curricula("shorter"), {"adapt.rank": [16]}, query, rate),
            product(curricula("shorter"), {"adapt.rank": [16]}, query, {"optimizer.peak_lr": [8e-3]}),
            product(half, {"ar_share": [0.25]}),
            product(direct, {"ar_share": [0.5]}),
            product(direct, {"adapt.rank": [64]}, query, rate),
            product(direct, {"ar_share": [0.25], "adapt.distill": [0.5]}),
            curricula("ramped", "short", "subsets"),
            product(direct, {"ar_share": [0.1]}),
            product(direct, {"optimizer.peak_lr": [5e-4, 2e-3]}),
            product(direct, {"adapt.frozen": {"embeddings and norms": ("embeddings", "norms")}}),
            product(direct, {"adapt.rank": [16]}, both, rate),
            curricula("ones", "eights"),
        ),
        seeds(3),
    )
