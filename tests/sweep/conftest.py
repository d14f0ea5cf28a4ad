"""An experiment that a sweep varies, and run folders that no training wrote."""

import json
from collections.abc import Callable, Mapping

import pytest

from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.files.strict import to_json
from a3jax.sweep.trials import Trial


@pytest.fixture
def experiment(tiny) -> Config:
    """Eight steps through two stages of a small model, with random weights."""
    return Config(
        name="varied",
        model=tiny(layers=2, vocab=258, start_token=256, end_tokens=(257,)),
        data=DataConfig("corpus", length=32, batch=4),
        curriculum=(Stage(3, "in_order", 1), Stage(5, "random", 4)),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=2),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=4, eval_windows=3, save_every=1),
    )


@pytest.fixture
def write_run() -> Callable[..., None]:
    """A run folder as training leaves it: what was evaluated at which step, saved at the last of them."""

    def write(trial: Trial, evaluated: Mapping[int, Mapping[str, object]]) -> None:
        run = trial.config.run_folder
        (run / "checkpoints" / str(max(evaluated))).mkdir(parents=True)
        (run / "config.json").write_text(to_json(trial.config))
        (run / "model.json").write_text(to_json(trial.config.model))
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps({'step': s, **row})}\n" for s, row in evaluated.items()))

    return write
