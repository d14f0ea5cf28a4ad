"""The study's winner and what it is compared with (docs/study.md), on SmolLM2-135M: a taste, sized for an hour on two cores.

make demo                            # imports the model and prepares the text
a3jax sweep run study_smollm2
a3jax sweep report sweeps/study_smollm2
"""

from a3jax.config import AdaptConfig, Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import direct, mixed, paper
from a3jax.sweep import Trials, chain, product

STEPS = 100


def experiment() -> Config:
    """The paper's schedule with all weights, over 51,200 tokens of Python source."""
    return Config(
        name="study_smollm2",
        source="demo/smollm2",
        data=DataConfig(path="demo/corpus", length=256, batch=2),
        curriculum=paper(STEPS),
        adapt=AdaptConfig(rank=0),
        optimizer=OptimizerConfig(peak_lr=2e-4, warmup=5),
        train=TrainConfig(compute_dtype="float32", remat="dots", eval_every=STEPS, save_every=STEPS, eval_windows=16),
    )


def sweep() -> Trials:
    """Adapters of the query stream over as many tokens as the paper's schedule, and over as many FLOPs and less."""
    adapters = product({"curriculum": {"direct": direct(STEPS)}}, {"adapt.rank": [64]})
    return chain(
        product(adapters, {"optimizer.peak_lr": [2e-3]}),
        product(),
        product(adapters, {"optimizer.peak_lr": [4e-3]}),
        {"curriculum": {"ar": (Stage(STEPS),)}},
        {"optimizer.peak_lr": [5e-4]},
        {"curriculum": {"mixed": mixed(STEPS)}},
    )
