"""Two-sided seeds, from a source that has none: it begins as the source, learns, goes on, and is exported whole."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from chosen import long_after
from model_folders import load_arrays

import a3jax
from a3jax.checkpoint.folder import find
from a3jax.cli import main
from a3jax.config import AdaptConfig, Config, Stage
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.export.verify import verify
from a3jax.train.loop import train
from a3jax.train.trained import trained_model
from a3jax.weights.whole import parameters

TEXT, BLANK = list(b"def area(width, height): return width"), list(range(10, 37, 3))


@pytest.fixture(scope="module")
def published(whole_run, tmp_path_factory) -> Path:
    """What a run has learned, as plain weights."""
    folder = tmp_path_factory.mktemp("source") / "llama"
    export_model(find(whole_run), folder, "llama")
    return folder


@pytest.fixture
def two_sided(experiment, published):
    """An experiment of six steps with two-sided seeds; keyword arguments replace fields of `TrainConfig`."""

    def make(run: str, rank: int, **changes) -> Config:
        config = experiment(run, **{"save_every": 2, "eval_every": 100, **changes})
        stages = (Stage(6, "random", 4, given=0.5),)
        made = {"source": str(published), "model": None, "adapt": AdaptConfig(rank=rank), "curriculum": stages}
        return dataclasses.replace(config, seeding="two_sided", **made)

    return make


def first_figures(config: Config) -> str:
    """What stands in the run folder of held-out text before the first step."""
    return (config.run_folder / "metrics.jsonl").read_text().partition("\n")[0]


def nats(folder: Path, order: str) -> list[float]:
    given = [[place not in BLANK for place in range(len(TEXT))]]
    return a3jax.token_log_likelihoods(a3jax.load(folder), [TEXT], given, order=order)[0].tokens


@pytest.mark.parametrize("rank", long_after(1, [2, 0]))
def test_a_run_from_plain_weights(rank, two_sided, published, tmp_path):
    whole, parts = two_sided("whole", rank), two_sided("parts", rank)
    train(whole)
    for stop in (3, None):
        train(dataclasses.replace(parts, train=dataclasses.replace(parts.train, stop_at=stop)))
    held = [{name: one.read() for name, one in parameters(find(run.run_folder)).items()} for run in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *held)
    assert np.abs(held[0]["successor_seed"]).min() > 0
    one_sided = dataclasses.replace(whole, seeding=None, run=str(tmp_path / "one_sided"))
    train(dataclasses.replace(one_sided, train=dataclasses.replace(one_sided.train, stop_at=1)))
    assert first_figures(whole) == first_figures(one_sided), "it begins as it would without"
    if rank:
        np.testing.assert_array_equal(nats(whole.run_folder, "ar"), nats(published, "ar"))

    checkpoint = find(whole.run_folder)
    for style in ("a3", "llama"):
        export_model(checkpoint, tmp_path / style, style)
        assert verify(checkpoint, tmp_path / style).problem is None
    assert nats(tmp_path / "a3", "random_1") == pytest.approx(nats(whole.run_folder, "random_1"), abs=1e-5)
    assert "successor_seed" not in load_arrays(find(imported(tmp_path / "llama", tmp_path / "plain")))


def imported(folder: Path, out: Path) -> Path:
    main(["import", str(folder), str(out)])
    return out


def test_what_has_them_keeps_them(two_sided, tiny):
    config = dataclasses.replace(two_sided("run", 0), seeding="successor")
    with pytest.raises(UserError, match="seeding is successor, but the source has two-sided seeds; leave seeding out"):
        trained_model(config, tiny(seeding="two_sided"))
    config = dataclasses.replace(config, seeding=None, adapt=AdaptConfig(rank=2, distill=0.5))
    with pytest.raises(UserError, match=r"adapt\.distill is given, but the source has two-sided seeds"):
        trained_model(config, tiny(seeding="two_sided"))
    config = dataclasses.replace(config, objective="diffusion", adapt=AdaptConfig(), curriculum=(Stage(6),))
    with pytest.raises(UserError, match="has two-sided query seeds, but objective diffusion predicts from the token before"):
        trained_model(config, tiny(seeding="two_sided"))
