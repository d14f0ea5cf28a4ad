"""Compiled steps on disk: what is loaded computes the same, and what was compiled for something else is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from a3jax.config import Config, DataConfig, MeshConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.errors import UserError
from a3jax.mesh import batch_sharding, make_mesh
from a3jax.plan import executable
from a3jax.plan.compile import lower
from a3jax.train.step import init_state, random_params


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def config(tiny):
    return Config(
        name="test",
        model=tiny(layers=2),
        data=DataConfig(length=16, batch=2),
        curriculum=(Stage(3, "random", 4),),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=0),
        train=TrainConfig(compute_dtype="float32", remat="none"),
    )


@pytest.fixture(scope="module")
def lowered(config, mesh):
    return lower(config, config.model, config.curriculum[0], mesh)


@pytest.fixture(scope="module")
def compiled(lowered):
    return lowered.compile()


@pytest.fixture(scope="module")
def saved(config, lowered, compiled, mesh, tmp_path_factory):
    return executable.save(tmp_path_factory.mktemp("steps"), config.curriculum[0], lowered, compiled, mesh)


def test_a_loaded_step_computes_what_the_compiled_one_does(config, lowered, compiled, mesh, saved):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.model.vocab, (2, 16)).astype(np.int32)
    batch = jax.device_put({"tokens": tokens, "segments": np.ones_like(tokens)}, batch_sharding(mesh))

    def two_steps(step):
        with jax.set_mesh(mesh):
            state = init_state(config, random_params(config, config.model, mesh), config.model, mesh)
            state, _ = step(state, batch)
            return jax.tree.map(np.asarray, step(state, batch))

    expected = two_steps(compiled)
    actual = two_steps(executable.load(saved.parent, config.curriculum[0], lowered, mesh))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": OptimizerConfig(peak_lr=2e-2, warmup=0)},
        {"data": DataConfig(length=16, batch=4)},
        {"curriculum": (Stage(3, "random", 4, given=0.5),)},
        {"seed": 1},
    ],
    ids=str,
)
def test_another_experiment_is_refused(change, config, mesh, saved):
    other = dataclasses.replace(config, **change)
    stage = other.curriculum[0]
    with pytest.raises(
        UserError, match=r"has no step random_4 of this experiment as it is now; save it again with a3jax plan"
    ):
        executable.load(saved.parent, stage, lower(other, other.model, stage, mesh), mesh)


def test_names_and_what_is_logged_are_no_part_of_a_step(config, mesh, saved):
    train = dataclasses.replace(config.train, log_every=7, save_every=9)
    other = dataclasses.replace(config, name="other", run="elsewhere", train=train)
    lowered = lower(other, other.model, other.curriculum[0], mesh)
    assert callable(executable.load(saved.parent, config.curriculum[0], lowered, mesh))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("jax", "another version of JAX: x, not"),
        ("libtpu", "another version of libtpu: x, not"),
        ("devices", "another mesh or other devices; save"),
        ("program", "another step; save"),
    ],
)
def test_other_versions_and_devices_are_refused(field, message, config, lowered, mesh, saved):
    facts = saved.with_suffix(".json")
    before = facts.read_text()
    try:
        facts.write_text(json.dumps({**json.loads(before), field: "x"}))
        with pytest.raises(UserError, match=rf"random_4-\w+\.executable was compiled for {message}"):
            executable.load(saved.parent, config.curriculum[0], lowered, mesh)
    finally:
        facts.write_text(before)


def test_a_damaged_file_is_one_line(config, lowered, mesh, saved, tmp_path):
    for source in saved.parent.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes()[: -1000 if source.suffix == ".executable" else None])
    with pytest.raises(UserError, match=r"random_4-\w+\.executable is damaged \(.+\); save it again") as error:
        executable.load(tmp_path, config.curriculum[0], lowered, mesh)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_named(config, lowered, compiled, mesh, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/steps cannot be written: Not a directory"):
        executable.save(tmp_path / "file" / "steps", config.curriculum[0], lowered, compiled, mesh)
