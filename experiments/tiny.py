"""Three million parameters on bytes of Python source, in a minute and a half on two cores: for those who change the code.

`make tiny` prepares the text and trains.
"""

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.sweep import Trials, product, seeds


def experiment() -> Config:
    """Random weights, and a curriculum in three stages."""
    return Config(
        name="tiny",
        model=ModelConfig(
            family="llama",
            vocab=258,
            width=256,
            ff_width=704,
            layers=4,
            query_heads=4,
            kv_heads=2,
            head_width=64,
            context=1024,
            tied_head=True,
            start_token=256,
            end_tokens=(257,),
        ),
        data=DataConfig(path="data/tiny", length=256, batch=4),
        curriculum=(Stage(20, "in_order", 1), Stage(10, "in_order", 4), Stage(20, "random", 4)),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup=10),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=50, save_every=25, eval_windows=8),
    )


def sweep() -> Trials:
    """How fast to learn, and whether to begin with the order that is asked for in the end."""
    curricula = {"staged": experiment().curriculum, "direct": (Stage(50, "random", 4),)}
    return product({"optimizer.peak_lr": [1e-3, 2e-3], "curriculum": curricula}, seeds(2))
