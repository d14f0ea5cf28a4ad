"""SmolLM2-135M becomes any-order on Python source: the experiment of `make demo`, sized for a few minutes on two cores."""

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig


def experiment() -> Config:
    """Adapters of the query stream, as by default, over random groups; up to half of a window is given, as around blanks."""
    return Config(
        name="demo",
        source="demo/smollm2",
        run="demo/run",
        data=DataConfig(path="demo/corpus", length=256, batch=2),
        curriculum=(Stage(60, "random", 4, given=0.5),),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup=4),
        train=TrainConfig(compute_dtype="float32", remat="dots", eval_every=60, save_every=60, eval_windows=8),
    )
