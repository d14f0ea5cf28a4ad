"""Short blanks learn where they end: the adapters of smollm2_code go on for some minutes on two CPU cores (docs/blanks.md).

a3jax import .cache/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-code --adapters adapters/smollm2-135m-code
a3jax prepare ...                    # data/packages, as experiments/smollm2_code.py says
a3jax train smollm2_ends

Blanks of unknown length had up to 150 tokens in that run, and so ended too late where a line was asked for. Here they have 20
at most. A part of each batch is what that run was for, so that it is not forgotten.
"""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import Part

STEPS = 100
"""Of 2,048 tokens."""
ORDERS = (
    Part(4.0, "open", 1, given=0.92),
    Part(1.0, "infill", 1, given=0.8),
    Part(1.0, "random", 4, given=0.9, sizes="geometric"),
)


def experiment() -> Config:
    """The same adapters, at a smaller rate."""
    return Config(
        name="smollm2_ends",
        source="models/smollm2-code",
        data=DataConfig(path="data/packages", length=256, batch=8),
        curriculum=(Stage(STEPS, mixture=ORDERS),),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=10, decay=0.5, final_lr=0.05),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=100, save_every=50, eval_windows=2),
    )
