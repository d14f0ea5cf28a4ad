"""The study that settles the defaults (docs/study.md): curricula and what is trained, on a small model of our own.

a3jax sweep run study --at-once 2        # after the commands of experiments/study_base.py
a3jax sweep report sweeps/study
"""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import paper
from a3jax.stage import Part
from a3jax.sweep import Trials, chain, product, seeds

STEPS = 75
DIRECT = (Stage(STEPS, "random", 4),)
"""The order that is asked for in the end, from the first step."""
SUBSETS = (Stage(STEPS, mixture=(Part(1.0, "random", 4, sizes="geometric"),)),)
"""Groups of any size, four tokens on average."""


def experiment() -> Config:
    """The paper's schedule, over 0.3 million bytes that the base model has not seen: a twentieth of its own training."""
    return Config(
        name="study",
        source="runs/study_base",
        data=DataConfig(path="data/study", length=256, batch=16),
        curriculum=paper(STEPS),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=5),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=STEPS, save_every=STEPS, eval_windows=64),
        seed=0,
    )


def sweep() -> Trials:
    """Three seeds of every setting."""
    direct = {"curriculum": {"direct": DIRECT}}
    ramped = tuple(Stage(15, *kind, ramp=ramp) for kind, ramp in _KINDS)
    short = (Stage(10, "in_order", 4), Stage(STEPS - 10, "random", 4))
    return product(
        chain(
            product(),
            {"seeding": ["learned"]},
            {"curriculum": {"ar": (Stage(STEPS),)}},
            {
                "curriculum": {
                    "ramped": ramped,
                    "short": short,
                    "direct": DIRECT,
                    "subsets": SUBSETS,
                    "ones": _random(1),
                    "eights": _random(8),
                }
            },
            product(direct, {"ar_share": [0.1, 0.25, 0.5]}),
            product(direct, {"optimizer.peak_lr": [5e-4, 2e-3]}),
            product(direct, {"adapt.frozen": {"embeddings and norms": ("embeddings", "norms")}}),
            product(direct, {"adapt.rank": [16]}, {"adapt.stream": ["query", "both"]}, {"optimizer.peak_lr": [4e-3]}),
            product(direct, {"ar_share": [0.25]}, {"adapt.distill": [0.5]}),
            product({"curriculum": {"half": (Stage(STEPS // 2, "random", 4),)}}, {"ar_share": [0.0, 0.25]}),
        ),
        seeds(3),
    )


_KINDS = [(("in_order", 1), 0), (("in_order", 2), 10), (("in_order", 4), 10), (("random", 4), 10), (("random", 8), 10)]


def _random(size: int) -> tuple[Stage, ...]:
    return (Stage(STEPS, "random", size),)
