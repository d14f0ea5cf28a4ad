"""SmolLM2-135M becomes any-order on Python source: the experiment of `make demo`, sized for a few minutes on two cores."""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig


def experiment() -> Config:
    """The paper's curriculum, much shortened; successor seeding starts it at the source model's own loss."""
    return Config(
        name="demo",
        source="demo/smollm2",
        run="demo/run",
        data=DataConfig(path="demo/corpus", length=256, batch=2),
        curriculum=(
            Stage(2, "in_order", 1),
            Stage(4, "in_order", 2),
            Stage(4, "in_order", 4),
            Stage(14, "random", 4, given=0.5),
            Stage(14, "random", 8, given=0.5),
        ),
        optimizer=OptimizerConfig(peak_lr=2e-4, warmup=4),
        train=TrainConfig(compute_dtype="float32", remat="dots", eval_every=38, save_every=38, eval_windows=8),
    )
