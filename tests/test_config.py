"""Configurations: strict to read, lossless to write, and checked before anything runs."""

import dataclasses
import json
import math

import pytest

from a3jax.config import Config, DataConfig, Llama3Scaling, MeshConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.config import check_start as check
from a3jax.curriculum.presets import paper
from a3jax.errors import UserError
from a3jax.files.strict import from_json, nearest, read, to_json


@pytest.fixture
def full(tiny):
    """Every kind of field, away from its default."""
    model = tiny(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192), start_token=1, end_tokens=(2, 3), query_key_norm="head")
    return Config("full", model=model, run="somewhere", seed=7, curriculum=paper(60, 0.5), data=DataConfig(batch=16))


def test_json_gives_the_same_configuration_back(full):
    assert from_json(Config, to_json(full), "x") == full
    assert from_json(Config, to_json(Config("plain")), "x") == Config("plain")
    assert from_json(ModelConfig, to_json(full.model), "x") == full.model


def test_absent_fields_take_their_defaults_and_integers_may_stand_for_floats():
    config = from_json(Config, '{"name": "n", "optimizer": {"clip": 2}, "curriculum": [{"steps": 3}]}', "x")
    assert config == Config("n", optimizer=dataclasses.replace(config.optimizer, clip=2.0), curriculum=(Stage(3),))
    assert type(config.optimizer.clip) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "run.json: unknown field 'sede'; did you mean 'seed'?"),
        ({"data": {"lenght": 1}}, "run.json: data: unknown field 'lenght'; did you mean 'length'?"),
        ({"qqqqqq": 1}, "run.json: unknown field 'qqqqqq'"),
        ({"seed": "1"}, "run.json: seed is '1'; expected int"),
        ({"seed": True}, "run.json: seed is True; expected int"),
        ({"seed": 1.5}, "run.json: seed is 1.5; expected int"),
        ({"seed": None}, "run.json: seed is None; expected int"),
        ({"run": 3}, "run.json: run is 3; expected str"),
        ({"optimizer": {"clip": "big"}}, "run.json: optimizer: clip is 'big'; expected float"),
        ({"optimizer": 3}, "run.json: optimizer is 3; expected OptimizerConfig"),
        ({"curriculum": {"steps": 3}}, "run.json: curriculum is {'steps': 3}; expected tuple"),
        ({"curriculum": [{"steps": 3}, {"steps": []}]}, "run.json: curriculum[1]: steps is []; expected int"),
        ({"data": {"mixture": [{}]}}, "run.json: data: mixture[0]: field 'path' is missing"),
        (
            {"train": {"remat": "ful"}},
            "run.json: train: remat is 'ful'; expected one of auto, none, dots, offload, full; did you mean 'full'?",
        ),
        ({"train": {"remat": 1}}, "run.json: train: remat is 1; expected one of auto, none, dots, offload, full"),
        ({"model": {"family": "llama"}}, "run.json: model: field 'vocab' is missing"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_expected(change, message):
    with pytest.raises(UserError) as error:
        from_json(Config, json.dumps({"name": "n", **change}), "run.json")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers is 0; it must be a whole number from 1 to 2147483647"),
        ({"layers": 2**31}, "layers is 2147483648; it must be a whole number from 1 to 2147483647"),
        ({"kv_heads": 3}, "query_heads 4 cannot share kv_heads 3; these must divide them"),
        ({"head_width": 7}, "head_width is 7; it must be even"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be a positive number, and finite in float32"),
        ({"rope_theta": 1e39}, "rope_theta is 1e+39; it must be a positive number, and finite in float32"),
        ({"adapter_rank": -1}, "adapter_rank is -1; it must be a whole number from 1 to 2147483647"),
        ({"start_token": 48}, "start_token is 48; it must be the id of a token, from 0 to 47"),
        ({"end_tokens": [2, -1]}, "end_tokens is -1; it must be the id of a token, from 0 to 47"),
        (
            {"rope_scaling": {"factor": 0.0}},
            "rope_scaling: factor is 0.0; it must be a positive number, and finite in float32",
        ),
    ],
)
def test_a_number_that_no_model_can_have_is_named_with_its_file(change, message, tiny):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}
    change = {name: scaling | value if name == "rope_scaling" else value for name, value in change.items()}
    with pytest.raises(UserError) as error:
        from_json(ModelConfig, json.dumps(dataclasses.asdict(tiny()) | change), "model.json")
    assert str(error.value) == f"model.json: {message}"


def test_what_is_not_json_or_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run.json is not JSON: Expecting property name"):
        from_json(Config, "{", "run.json")
    with pytest.raises(UserError, match=r"run.json is \[\]; expected Config"):
        from_json(Config, "[]", "run.json")
    with pytest.raises(UserError, match=r"model.json does not exist"):
        read(ModelConfig, tmp_path / "model.json")
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(UserError, match=r"model.json is .*; expected ModelConfig"):
        read(ModelConfig, tmp_path / "model.json")


def test_a_file_that_is_not_text_is_a_user_error(tmp_path):
    (tmp_path / "model.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"model.json is not UTF-8 text: byte 0xff after byte 0"):
        read(ModelConfig, tmp_path / "model.json")


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("sed", ["seed", "data"]) == "; did you mean 'seed'?"
    assert nearest("zzz", ["seed", "data"]) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(length=0)}, "data.length is 0; it must be at least 1"),
        ({"data": DataConfig(batch=10**30)}, "data.batch is 1" + "0" * 30 + "; it must be at most 2147483647"),
        ({"data": DataConfig(batch=2**21)}, "data.batch is 2097152; it must be at most 1048576"),
        ({"data": DataConfig(workers=10**6)}, "data.workers is 1000000; it must be at most 4096"),
        ({"train": TrainConfig(eval_windows=10**9)}, "train.eval_windows is 1000000000; it must be at most 1048576"),
        ({"mesh": MeshConfig(data=10**30)}, "mesh.data is 1" + "0" * 30 + "; it must be at most 2147483647"),
        ({"curriculum": (Stage(10**9),)}, "the curriculum is 1000000000 steps; it must be at most 67108864"),
        ({"curriculum": (Stage(8, batch=10**7),)}, "curriculum.0.batch is 10000000; it must be at most 1048576"),
        ({"name": ""}, "name is ''; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": "  "}, "name is '  '; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": ".."}, "name is '..'; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": "a/b"}, "name is 'a/b'; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": "a\x1b[2J"}, "name is 'a\\x1b[2J'; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": "\udc80"}, "name is '\\udc80'; it must be the name of a folder, without a slash; --run takes a path"),
        ({"name": "é" * 120}, f"name is '{'é' * 59}..., 240 bytes long; it must be at most 200"),
        ({"run": ""}, "run is ''; it must be the path of a folder; without it, that is runs/NAME"),
        ({"data": DataConfig(batch=-1)}, "data.batch is -1; it must be at least 1"),
        ({"optimizer": OptimizerConfig(b1=1.0)}, "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
        ({"optimizer": OptimizerConfig(b2=-1.0)}, "optimizer.b2 is -1.0; it must be at least 0 and below 1"),
        ({"optimizer": OptimizerConfig(eps=0.0)}, "optimizer.eps is 0.0; it must be above 0"),
        ({"optimizer": OptimizerConfig(clip=0.0)}, "optimizer.clip is 0.0; it must be above 0"),
        ({"optimizer": OptimizerConfig(peak_lr=math.inf)}, "optimizer.peak_lr is inf; it must be finite"),
        ({"train": TrainConfig(keep_hours=math.inf)}, "train.keep_hours is inf; it must be finite"),
        ({"train": TrainConfig(accumulate=0)}, "train.accumulate is 0; it must be at least 1"),
        ({"train": TrainConfig(loss_chunk=0)}, "train.loss_chunk is 0; it must be at least 1"),
        ({"train": TrainConfig(accumulate=3)}, "train.accumulate 3 does not divide data.batch 16"),
        ({"curriculum": (Stage(1), Stage(-1))}, "curriculum.1 (in_order_1).steps is -1; it must be at least 0"),
        ({"curriculum": (Stage(0), Stage(0))}, "curriculum has no step; give at least one stage a length"),
        (
            {"curriculum": (Stage(1, batch=6),), "train": TrainConfig(accumulate=4)},
            "train.accumulate 4 does not divide curriculum.0.batch 6",
        ),
        ({"curriculum": (Stage(1, group_size=0),)}, "curriculum.0.group-size is 0; it must be at least 1"),
        ({"curriculum": (Stage(1, given=1.0),)}, "curriculum.0.given is 1.0; it must be at least 0 and below 1"),
        ({"curriculum": (Stage(1, given=-0.1),)}, "curriculum.0.given is -0.1; it must be at least 0 and below 1"),
        ({"curriculum": ()}, "curriculum is empty; give at least one stage"),
        ({"model": None}, "give source (an imported model), or model (random weights of that shape)"),
    ],
)
def test_values_that_cannot_work_are_refused(full, changes, message):
    check(full)
    with pytest.raises(UserError) as error:
        check(dataclasses.replace(full, **changes))
    assert str(error.value) == message


def test_names_and_sums():
    config = Config("trial", curriculum=(Stage(3), Stage(4, "random", 8)))
    assert config.steps == 7
    assert str(config.run_folder) == "runs/trial"
    assert str(dataclasses.replace(config, run="a/b").run_folder) == "a/b"
    assert [stage.name for stage in config.curriculum] == ["in_order_1", "random_8"]
