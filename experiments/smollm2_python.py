"""SmolLM2-135M becomes any-order on Python source: the experiment of `make demo`, sized for a few minutes on two cores."""

from a3jax.config import Config, DataConfig, OptimizerConfig, TrainConfig
from a3jax.curriculum import paper


def experiment() -> Config:
    """The paper's curriculum, much shortened; successor seeding starts it at the source model's own loss."""
    return Config(
        name="demo",
        source="demo/smollm2",
        run="demo/run",
        data=DataConfig(path="demo/corpus", length=256, batch=2),
        curriculum=paper(40),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup=4),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=40, save_every=40, eval_windows=16),
    )
