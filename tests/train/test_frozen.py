"""Checkpoints of what is trained alone: as good as whole ones, as long as the source is what it was."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from chosen import long_after
from model_folders import load_arrays, save_model

import a3jax
from a3jax.checkpoint.arrays import nested
from a3jax.checkpoint.folder import Checkpoint, find
from a3jax.config import AdaptConfig, Config, GuardConfig, Stage
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.show.describe import describe
from a3jax.train.loop import train
from a3jax.train.report import Report
from a3jax.weights.whole import parameters


def whole_arrays(checkpoint: Checkpoint) -> dict:
    return nested({name: parameter.read() for name, parameter in parameters(checkpoint).items()})


@pytest.fixture(scope="module")
def model_folder(whole_run, tmp_path_factory) -> Path:
    """What a run has learned, as a model folder."""
    run, folder = find(whole_run), tmp_path_factory.mktemp("source") / "model"
    save_model(folder, run.config, load_arrays(run), run.record, byte_codec().files)
    return folder


@pytest.fixture(scope="module")
def published(model_folder) -> Path:
    """The same as a Hugging Face folder, in bfloat16."""
    folder = model_folder.with_name("published")
    export_model(find(model_folder), folder, "llama", "bfloat16")
    return folder


@pytest.fixture
def adapted(experiment, tmp_path):
    """An experiment of six steps that trains adapters of a source; keyword arguments replace fields of `TrainConfig`."""

    def make(run: str, source: Path, **train) -> Config:
        config = experiment(run, **{"save_every": 2, "eval_every": 100, **train})
        stages = (Stage(6, "random", 4, given=0.5),)
        return dataclasses.replace(config, source=str(source), model=None, adapt=AdaptConfig(rank=2), curriculum=stages)

    return make


def assert_same(a: Path, b: Path) -> None:
    for x, y in zip(*(jax.tree.leaves(whole_arrays(find(run))) for run in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", long_after(1, ["published", "model_folder"]))
def test_what_is_trained_and_the_source_are_the_whole_bit_for_bit(kind, adapted, request, tmp_path):
    source = request.getfixturevalue(kind)
    small, large = adapted("small", source), adapted("large", source, save="whole")
    train(large)
    train(dataclasses.replace(small, train=dataclasses.replace(small.train, stop_at=3)))
    assert train(small).steps == 6, "it goes on"
    held = set(load_arrays(find(small.run_folder))["blocks"])
    assert held == {f"{name}_{side}" for name in ("query", "output", "gate", "up", "down") for side in ("in", "out")}
    assert load_arrays(find(small.run_folder)).keys() == {"blocks", "query_seed"}
    assert_same(small.run_folder, large.run_folder)
    loaded = [a3jax.load(run.run_folder).params for run in (small, large)]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    for run in (small, large):
        export_model(find(run.run_folder), tmp_path / f"exported-{run.run_folder.name}")
    exported = [(tmp_path / f"exported-{run}" / "model.safetensors").read_bytes() for run in ("small", "large")]
    assert exported[0] == exported[1]
    facts = [describe(run.run_folder) for run in (small, large)]
    assert facts[0]["parameters"] == facts[1]["parameters"] > 2 * facts[0]["saved_parameters"]
    assert facts[0]["other_weights"] == f"in {source}, as they were"


def test_a_rollback_keeps_the_weights_that_no_checkpoint_holds(adapted, model_folder, monkeypatch):
    config, flush, done = adapted("back", model_folder), Report.flush, []

    def bad_once(self):
        flush(self)
        if not done and self.loss is not None and self._bar is not None and len(self._speeds) == 3:
            done.append(1)
            self.roll_back = True

    monkeypatch.setattr(Report, "flush", bad_once)
    train(dataclasses.replace(config, guard=GuardConfig("rollback")))
    assert done
    base, after = load_arrays(find(model_folder))["blocks"], whole_arrays(find(config.run_folder))["blocks"]
    for name, array in base.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_source_that_has_moved_or_changed_is_one_line_that_says_so(adapted, model_folder, tmp_path):
    source = shutil.copytree(model_folder, tmp_path / "model")
    config = adapted("run", source, stop_at=2)
    train(config)
    on = adapted("run", source)
    source.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"model does not exist; "):
        train(on)
    for use in (a3jax.load, lambda run: export_model(find(run), tmp_path / "exported")):
        with pytest.raises(
            UserError, match=r"holds what it has trained, .*/model does not exist; put that back, or .*--source"
        ):
            use(config.run_folder)
    assert "does not exist" in describe(config.run_folder)["other_weights"]
    moved = adapted("run", tmp_path / "moved", stop_at=4)
    assert train(moved).steps == 4
    a3jax.load(config.run_folder)
    a3jax.load(config.run_folder, step=2)
    file = max((tmp_path / "moved" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    for use in (a3jax.load, lambda run: train(moved), lambda run: export_model(find(run), tmp_path / "exported")):
        with pytest.raises(UserError, match=r"moved is not what .*run was trained from any more: the SHA-256"):
            use(config.run_folder)
    assert not (tmp_path / "exported").exists()
    assert not (config.run_folder / "checkpoints" / "damaged").exists()


def test_a_run_whose_checkpoints_are_whole_goes_on_with_whole_ones(adapted, model_folder):
    """As all were before; its source may have become another since, and it would not be noticed."""
    train(adapted("old", model_folder, save="whole", stop_at=2))
    assert train(adapted("old", model_folder)).steps == 6
    assert "gate" in load_arrays(find(adapted("old", model_folder).run_folder))["blocks"]


def test_steps_of_a_run_are_no_source_to_rely_on_but_its_own_source_is(adapted, model_folder):
    first = adapted("first", model_folder)
    train(first)
    second = dataclasses.replace(adapted("second", first.run_folder), adapt=AdaptConfig())
    train(second)
    shutil.rmtree(first.run_folder)
    found = find(second.run_folder)
    assert found.frozen.source == str(model_folder)
    assert "gate" not in load_arrays(found)["blocks"]
    np.testing.assert_array_equal(whole_arrays(found)["embedding"], load_arrays(find(model_folder))["embedding"])
    a3jax.load(second.run_folder)
