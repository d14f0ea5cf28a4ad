"""Compiled steps on disk: a run on loaded ones is the same run, and what was compiled for something else is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from chosen import long_after
from model_folders import load_arrays

from a3jax.checkpoint.folder import find
from a3jax.config import Config, DataConfig, MeshConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.train import executable, remat
from a3jax.train.compiled import compile_step, lower
from a3jax.train.loop import train
from a3jax.train.metrics import read

STAGE = Stage(3, "random", 4)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def config(tiny):
    return Config(
        name="test",
        model=tiny(layers=2),
        data=DataConfig(length=16, batch=2),
        curriculum=(STAGE,),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=0),
        train=TrainConfig(compute_dtype="float32", remat="none"),
    )


def save(folder: Path, config: Config, stage: Stage, mesh) -> Path:
    """As `a3jax plan --save` does, for the devices of this machine."""
    config = remat.chosen(config, config.model, mesh, remat.device_memory(jax.devices()[0]))
    lowered = lower(config, config.model, stage, mesh)
    facts = executable.fingerprint(config, config.model, lowered, mesh)
    return executable.save(folder, stage, facts, lowered.compile())


@pytest.fixture(scope="module")
def saved(config, mesh, tmp_path_factory):
    return save(tmp_path_factory.mktemp("steps"), config, STAGE, mesh)


def load(config, folder, mesh, stage=STAGE):
    train = dataclasses.replace(config.train, executables=str(folder))
    return compile_step(dataclasses.replace(config, train=train), config.model, stage, mesh)


@pytest.mark.long
def test_a_run_on_loaded_steps_compiles_none_and_is_the_same_run(experiment, mesh, tmp_path, monkeypatch):
    config = experiment("compiled", remat="auto")
    for stage in config.curriculum:
        save(tmp_path / "steps", config, stage, mesh)
    train(config)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
    train(experiment("loaded", remat="auto", executables=str(tmp_path / "steps")))
    arrays = [jax.tree.leaves(load_arrays(find(tmp_path / run))) for run in ("compiled", "loaded")]
    for expected, actual in zip(*arrays, strict=True):
        np.testing.assert_array_equal(actual, expected)
    losses = [[row["loss"] for row in read(tmp_path / run) if "loss" in row] for run in ("compiled", "loaded")]
    assert losses[0] == losses[1]


def test_a_run_that_lacks_the_step_of_a_later_stage_is_refused_before_its_first(experiment, mesh, tmp_path):
    config = experiment(executables=str(tmp_path / "steps"))
    save(tmp_path / "steps", config, config.curriculum[0], mesh)
    with pytest.raises(UserError, match=r"steps has no step for the stage random_4 of this experiment; save it again with"):
        train(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    long_after(
        2,
        [
            ({"optimizer": OptimizerConfig(peak_lr=2e-2, warmup=0)}, "optimizer.peak_lr = 0.01, not 0.02"),
            ({"data": DataConfig(length=16, batch=4)}, "data.batch = 2, not 4"),
            ({"curriculum": (Stage(5, "random", 4),)}, "curriculum.0.steps = 3, not 5"),
            ({"seed": 1}, "seed = 0, not 1"),
            ({"train": TrainConfig(compute_dtype="float32", remat="full")}, "train.remat = none, not full"),
        ],
    ),
    ids=str,
)
def test_another_experiment_is_refused_by_what_differs(change, message, config, mesh, saved):
    with pytest.raises(
        UserError, match=rf"random_4-\w+\.executable was compiled for {message}; save it again with a3jax plan"
    ):
        load(dataclasses.replace(config, **change), saved.parent, mesh)


@pytest.mark.parametrize("stage", [Stage(3, "random", 4, given=0.5), Stage(3, "random", 2), Stage(3)], ids=str)
def test_another_stage_is_not_there(stage, config, mesh, saved):
    with pytest.raises(UserError, match=f"has no step for the stage {stage.name} of this experiment"):
        load(config, saved.parent, mesh, stage)


def test_names_what_is_logged_and_the_steps_of_the_stage_itself_are_no_part_of_a_step(config, mesh, saved):
    train = dataclasses.replace(config.train, log_every=7, save_every=9)
    other = dataclasses.replace(config, name="other", run="elsewhere", train=train)
    assert callable(load(other, saved.parent, mesh, Stage(1, "random", 4)))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("jax", "JAX x, not"),
        ("libtpu", "libtpu x, not"),
        ("devices", "x, not slices 1 x data 1 x expert 1 x fsdp 1 x context 1 x tensor 1 of cpu"),
        ("places", "devices in other places"),
        ("program", "another version of a3jax"),
    ],
)
def test_other_versions_and_devices_are_refused(field, message, config, mesh, saved):
    facts = saved.with_suffix(".json")
    before = facts.read_text()
    try:
        facts.write_text(json.dumps({**json.loads(before), field: "x"}))
        with pytest.raises(UserError, match=rf"random_4-\w+\.executable was compiled for {message}"):
            load(config, saved.parent, mesh)
    finally:
        facts.write_text(before)


def test_a_damaged_file_is_one_line(config, mesh, saved, tmp_path):
    for source in saved.parent.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes()[: -1000 if source.suffix == ".executable" else None])
    with pytest.raises(UserError, match=r"random_4-\w+\.executable is damaged \(.+\); save it again") as error:
        load(config, tmp_path, mesh)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_named(config, mesh, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/steps cannot be written: Not a directory"):
        save(tmp_path / "file" / "steps", config, STAGE, mesh)
