"""Seeds from both sides against seeds from the left alone, on SmolLM2-135M: half an hour on two cores (docs/ideas.md).

a3jax import .cache/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2
a3jax prepare .venv/lib/python3.11/site-packages/jax data/jax --tokenizer models/smollm2 --include '*.py' --held-out 0.02
a3jax sweep run two_sided
"""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.sweep import Trials, product

STEPS = 150
"""Of 512 tokens."""


def experiment() -> Config:
    """Adapters of rank 64, as by default, in random groups of 4; up to half of a window is given."""
    return Config(
        name="two_sided",
        source="models/smollm2",
        data=DataConfig(path="data/jax", length=256, batch=2),
        curriculum=(Stage(STEPS, "random", 4, given=0.5),),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup=4),
        train=TrainConfig(compute_dtype="float32", remat="dots", eval_every=STEPS, save_every=STEPS, eval_windows=32),
    )


def sweep() -> Trials:
    """Both kinds of seeds."""
    return product({"seeding": ["successor", "two_sided"]})
