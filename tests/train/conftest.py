"""A small corpus of bytes, and an experiment that trains a small model on it."""

import dataclasses
import functools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.files.strict import to_json
from a3jax.train import compiled
from a3jax.train.loop import train


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short documents, a fifth of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    for i in range(60):
        text = " ".join(words.choice(["one", "two", "three", "four"]) for _ in range(words.randint(3, 40)))
        (folder / f"{i}.txt").write_text(text)
    prepare([folder], folder / "prepared", Preparation("bytes", held_out=0.2, workers=1))
    return folder / "prepared"


def make_experiment(corpus: Path, folder: Path, run: str = "run", **train) -> Config:
    """A run of eight steps through two stages in `folder`; keyword arguments replace fields of `TrainConfig`."""
    sizes = {"vocab": 258, "width": 16, "ff_width": 24, "layers": 2, "query_heads": 2, "kv_heads": 1, "head_width": 8}
    settings = {"compute_dtype": "float32", "remat": "none", "eval_every": 4, "eval_windows": 3, "save_every": 3}
    return Config(
        name="test",
        run=str(folder / run),
        model=ModelConfig(family="llama", context=64, start_token=256, end_tokens=(257,), **sizes),
        data=DataConfig(str(corpus), length=32, batch=4),
        curriculum=(Stage(3, "in_order", 1), Stage(5, "random", 4, given=0.5)),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=2),
        train=dataclasses.replace(TrainConfig(), **{**settings, **train}),
    )


@pytest.fixture
def experiment(corpus: Path, tmp_path: Path) -> Callable[..., Config]:
    """`make_experiment` in the test's own folder."""
    return functools.partial(make_experiment, corpus, tmp_path)


@pytest.fixture
def until_saved() -> Callable[[Config, int], None]:
    """Waits for a checkpoint, which is written in the background while steps go on."""

    def wait(config: Config, step: int) -> None:
        for _ in range(3000):
            if (config.run_folder / "checkpoints" / str(step)).exists():
                return
            time.sleep(0.01)
        raise TimeoutError(f"step {step} was not saved within 30 s")

    return wait


@pytest.fixture(scope="session")
def whole_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the experiment, trained without a break; not to be changed."""
    summary = train(make_experiment(corpus, tmp_path_factory.mktemp("whole"), "whole"))
    assert (summary.steps, summary.stopped_by) == (8, 0)
    return Path(summary.run)


@pytest.fixture
def uninterrupted(whole_run, experiment) -> str:
    """A copy of a run of eight steps that nothing disturbed."""
    config = experiment("whole")
    shutil.copytree(whole_run, config.run)
    return config.run


@pytest.fixture(scope="session", autouse=True)
def lowered_once() -> Iterator[None]:
    """Runs here repeat each other's steps: each is traced and lowered for the first of them, and compiled for all."""
    lower, kept = compiled.lower, {}

    def once(config: Config, model: ModelConfig, stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
        names = ("compute_dtype", "attention", "remat", "accumulate", "loss_chunk")
        in_step = TrainConfig(**{name: getattr(config.train, name) for name in names})
        key = (to_json(dataclasses.replace(config, name="any", run=None, train=in_step)), model, stage, mesh)
        if key not in kept:
            kept[key] = lower(config, model, stage, mesh)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "lower", once)
        yield
