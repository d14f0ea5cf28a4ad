"""The study behind the default curriculum and adapters (docs/study.md), on a small model of our own.

a3jax sweep run study --at-once 2        # after the commands of experiments/study_base.py
a3jax sweep report sweeps/study
"""

from a3jax.config import AdaptConfig, Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import Part, direct, paper
from a3jax.sweep import Trials, chain, product, seeds

STEPS = 75


def experiment() -> Config:
    """The paper's schedule with all weights, over 0.3 million bytes: a twentieth of what the base model was trained on."""
    return Config(
        name="study",
        source="runs/study_base",
        data=DataConfig(path="data/study", length=256, batch=16),
        curriculum=paper(STEPS),
        adapt=AdaptConfig(rank=0),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=5),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=STEPS, save_every=STEPS, eval_windows=64),
    )


CURRICULA = {
    "ar": (Stage(STEPS),),
    "direct": direct(STEPS),
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
    "half": direct(STEPS // 2),
    "shorter": direct(53),
}
"""`direct` is the order that is asked for in the end from the first step; `half` takes half of the steps. With adapters of
rank 16 in the query stream, `shorter` takes half of the FLOPs of the paper's schedule with everything trained."""


def curricula(*names: str) -> dict[str, dict[str, tuple[Stage, ...]]]:
    """Some of them, as a field of a sweep."""
    return {"curriculum": {name: CURRICULA[name] for name in names}}


def sweep() -> Trials:
    """Three seeds of every setting, the most telling settings first."""
    at_once, half = curricula("direct"), curricula("half")
    rate, query, both = {"optimizer.peak_lr": [4e-3]}, {"adapt.stream": ["query"]}, {"adapt.stream": ["both"]}
    return product(
        chain(
            product(),
            curricula("ar", "direct"),
            {"seeding": ["learned"]},
            product(at_once, {"adapt.rank": [16]}, query, rate),
            product(at_once, {"ar_share": [0.25]}),
            product(half, {"adapt.rank": [16]}, query, rate),
            product(curricula("shorter"), {"adapt.rank": [16]}, query, rate),
            product(curricula("shorter"), {"adapt.rank": [16]}, query, {"optimizer.peak_lr": [8e-3]}),
            product(half, {"ar_share": [0.25]}),
            product(at_once, {"adapt.rank": [64]}, query, {"optimizer.peak_lr": [4e-3, 8e-3]}),
            product(half, {"adapt.rank": [64]}, query, {"optimizer.peak_lr": [4e-3, 8e-3]}),
            product(at_once, {"ar_share": [0.25], "adapt.distill": [0.5]}),
            {"optimizer.peak_lr": [2e-3]},
            product(at_once, {"ar_share": [0.1]}),
            product(at_once, {"ar_share": [0.5]}),
            curricula("ramped"),
            product(curricula("subsets"), {"adapt.rank": [16]}, query, rate),
            curricula("short", "subsets"),
            product(at_once, {"optimizer.peak_lr": [5e-4, 2e-3]}),
            {"optimizer.peak_lr": [5e-4]},
            product(at_once, {"adapt.frozen": {"embeddings and norms": ("embeddings", "norms")}}),
            product(at_once, {"adapt.rank": [16]}, both, rate),
            curricula("ones", "eights"),
        ),
        seeds(3),
    )
