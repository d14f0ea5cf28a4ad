"""Whole plans, from the TPU compiler: needs libtpu, and no TPU."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from a3jax.cli import main
from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, Stage, TrainConfig
from a3jax.errors import UserError
from a3jax.experiment.files import load_experiment
from a3jax.model.parameters import count
from a3jax.plan.search import Candidate, search
from a3jax.plan.show import show_plan, show_search
from a3jax.plan.stages import plan
from a3jax.plan.topology import topology
from a3jax.train import flops
from a3jax.train.counts import full_window

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)"),
]
ROOT = Path(__file__).parents[2]
MODEL = ModelConfig("llama", 2048, 512, 1024, 4, 4, 4, 128, 1024)
STAGE = Stage(10, "in_order", 2)


@pytest.fixture(scope="module")
def config():
    return Config(
        name="test",
        model=MODEL,
        mesh=MeshConfig(data=1, fsdp=2, tensor=2),
        data=DataConfig(length=128, batch=8),
        curriculum=(STAGE, dataclasses.replace(STAGE, steps=30), Stage(5, "random", 8, given=0.5)),
        train=TrainConfig(attention="dense", remat="none"),
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The folder into which `planned` saves."""
    return tmp_path_factory.mktemp("plan") / "steps"


@pytest.fixture(scope="module")
def planned(config, steps):
    return plan(config, topology("v5e:2x2"), steps)


def test_a_run_that_fits(config, planned):
    answer = planned.as_dict()
    assert json.loads(json.dumps(answer)) == answer
    assert (answer["fits"], answer["bytes_over"], answer["devices"]) == (True, 0, 4)
    assert answer["mesh"] == {"slices": 1, "data": 1, "fsdp": 2, "context": 1, "tensor": 2}
    first, second, third = answer["stages"]
    assert answer["seconds"] == pytest.approx(10 * first["seconds"] + 30 * second["seconds"] + 5 * third["seconds"])
    assert first["bound_by"] in ("compute", "memory", "communication")
    assert 0 < first["mfu"] < 1
    memory = first["memory"]
    assert answer["bytes_per_chip"] == sum(third["memory"].values()) < answer["hbm_bytes"]
    assert memory["parameters"] == pytest.approx(4 * count(MODEL) / 4, rel=0.01)  # norms are split over fsdp alone
    logits = 8 * 128 * MODEL.vocab * 4 / 4  # float32, split by fsdp and tensor
    gradients = memory["parameters"]
    assert gradients < memory["temporaries"] < 20 * logits + 2 * gradients
    assert {"all-gather", "all-reduce"} <= set(first["sent_bytes"])


def test_stages_of_two_streams_cost_the_same(planned):
    """So that one of them may stand for the others where none is to be saved."""
    in_order, _, random = planned.stages
    assert (in_order.compiled_as, random.compiled_as) == ("in_order_2", "random_8")
    assert random.bound.executed_flops == in_order.bound.executed_flops
    assert random.bound.sent_bytes == in_order.bound.sent_bytes
    assert random.bound.hbm_bytes == pytest.approx(in_order.bound.hbm_bytes, rel=0.001)
    assert random.memory.total == pytest.approx(in_order.memory.total, rel=0.02)  # windows are short here: 128 tokens


def test_the_compiled_step_does_the_flops_counted_by_hand(config, planned):
    """Dense attention, so that the program hides no product; it computes twice what is useful of attention."""
    stage, bound = config.curriculum[0], planned.stages[0].bound
    useful = config.data.batch * flops.per_window(MODEL, stage, config.data.length)
    attention = config.data.batch * 3 * flops.attention_forward(MODEL, stage, full_window(config.data.length))
    assert bound.flops == useful
    assert bound.executed_flops == pytest.approx(useful + attention, rel=0.01)


def test_weights_are_gathered_and_gradients_reduced_at_least_once(planned):
    sent = planned.stages[0].bound.sent_bytes
    matrices = count(MODEL) - 2 * MODEL.vocab * MODEL.width
    half_of_a_shard = matrices // 2 // 2 * 2  # bfloat16, split by tensor, and one of two fsdp shards comes from elsewhere
    assert sum(sent.values()) > 2 * half_of_a_shard


def test_a_run_that_does_not_fit_says_by_how_much(monkeypatch):
    """Llama-3.1-8B needs 12 bytes a parameter for its state alone: 12 GB of a v5e's 16 on eight of them."""
    monkeypatch.chdir(ROOT)
    config = load_experiment("llama_8b")
    answer = plan(config, topology("v5e:2x4")).as_dict()
    assert not answer["fits"]
    assert answer["bytes_over"] == max(stage["bytes_over"] for stage in answer["stages"]) > 2**30
    assert answer["seconds"] is None
    memory = answer["stages"][-1]["memory"]
    assert memory["parameters"] + memory["optimizer"] == pytest.approx(12 * 8.03e9 / 8, rel=0.01)
    assert "seconds" not in answer["stages"][-1]


@pytest.mark.long
def test_a_mixture_of_experts_on_a_named_slice(monkeypatch):
    """Mixtral-8x7B as it ships: 46.7 billion parameters, of which a token goes through 12.9, and an expert on each eighth."""
    monkeypatch.chdir(ROOT)
    config = load_experiment("mixtral_8x7b")
    model, answer = config.model, plan(config, topology("v5p:4x4x4")).as_dict()
    assert (answer["fits"], answer["devices"], answer["mesh"]["expert"]) == (True, 64, 8)
    assert count(model) == pytest.approx(46.7e9, rel=0.001)
    active = dataclasses.replace(model, experts=None, ff_width=model.experts.active * model.ff_width)
    assert count(active) == pytest.approx(12.88e9, rel=0.001)


def test_steps_that_are_the_same_are_saved_once(planned, steps):
    names = sorted(file.name for file in steps.iterdir())
    assert [name.split("-")[0] for name in names] == ["in_order_2"] * 2 + ["random_8"] * 2
    binary, facts = (steps / name for name in names[:2])
    assert binary.stat().st_size > 10_000
    assert json.loads(facts.read_text())["devices"] == "slices 1 x data 1 x fsdp 2 x context 1 x tensor 2 of TPU v5 lite"


def test_tables_for_people(planned, capsys):
    show_plan(planned)
    printed = capsys.readouterr().out
    assert "0.01 B parameters on v5e:2x2: 4 devices, fsdp 2 x tensor 2" in printed
    assert "memory of a device, GiB of 16" in printed
    assert "fits; its 45 steps take " in printed
    show_plan(
        dataclasses.replace(planned, stages=(dataclasses.replace(planned.stages[0], bytes_over=3 * 2**29, bound=None),))
    )
    assert "does not fit: a device lacks 1,610,612,736 bytes (1.50 GiB)" in capsys.readouterr().out


def test_a_search_compiles_the_likely_and_ranks_what_fits(config, planned, monkeypatch, capsys):
    """What the compiler finds is made up here: a mesh split by tensor takes longer, a batch of 64 does not fit."""
    tried, bound = [], planned.stages[0].bound

    def pretend(one, model, chips):
        tried.append((one.mesh, one.data.batch))
        if one.data.batch >= 64:
            return Candidate(one, 20 * 2**30, 4 * 2**30, None)
        tokens = one.data.batch * one.data.length
        times = {"compute_seconds": tokens * one.mesh.tensor, "memory_seconds": 0.0, "communication_seconds": one.mesh.fsdp}
        return Candidate(one, 2**30, 0, dataclasses.replace(bound, tokens=tokens, **times))

    monkeypatch.setattr("a3jax.plan.search._try", pretend)
    found = search(config, topology("v5e:2x2"), [8, 64, 128, 2**20], limit=100)
    fitting = [one for one in found if one.bound is not None]
    assert found[: len(fitting)] == fitting
    assert {one.config.data.batch for one in fitting} == {8}
    orders = [(one.config.mesh.tensor, one.config.mesh.fsdp) for one in fitting]
    assert orders == sorted(orders)
    assert set(orders) == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}
    assert len(tried) == len(set(tried)) == len(found)
    assert 2**20 not in {batch for _, batch in tried}, "activations alone fill a device"
    for mesh in {mesh for mesh, _ in tried}:
        assert [batch for other, batch in tried if other == mesh and batch >= 64] in ([64], [128, 64]), (
            "a larger one after a refusal"
        )
    show_search(found, topology("v5e:2x2"))
    assert "4.00 GiB over" in capsys.readouterr().out


def test_a_search_without_a_mesh_that_divides_is_refused(config):
    with pytest.raises(UserError, match="no mesh over v5e:2x2 divides this model and a batch of 3; give another --batches"):
        search(dataclasses.replace(config, model=dataclasses.replace(MODEL, kv_heads=1)), topology("v5e:2x2"), [3], 1)


EXPERIMENT = """
from a3jax.config import Config, DataConfig, ModelConfig, Stage

def experiment():
    shape = ModelConfig("llama", 2048, 512, 1024, 2, 4, 4, 128, 1024)
    return Config("test", model=shape, data=DataConfig(length=128, batch=8), curriculum=(Stage(10),))
"""


def test_the_command(tmp_path, capsys):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    command = ["plan", str(tmp_path / "small.py"), "--topology", "v5e:2x2", "--json"]
    main([*command, "--search", "--batches", "8", "16", "--limit", "1", "--curriculum.0.steps", "3"])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["fits"]
    (best,) = answer["ranked"]
    assert best["batch"] == 16
    assert best["tokens_per_second"] == pytest.approx(16 * 128 / best["seconds"])
    too_much = [*command, "--data.batch", str(2**20)]
    with pytest.raises(SystemExit) as stop:
        main(too_much)
    assert stop.value.code == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not answer["fits"]
    assert answer["bytes_over"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v9:2x2"], "chip 'v9' is unknown"),
        (["--topology", "v5e:2x2", "--mesh.fsdp", "3"], "does not cover 4 devices"),
        (["--topology", "v5e:2x2", "--mesh.tensor", "4", "--mesh.fsdp", "1", "--model.kv-heads", "2"], "kv_heads = 2"),
        (["--topology", "v5e:2x2", "--data.batch", "6"], "the batch of one micro-batch = 6 is not divisible"),
        ([], "--topology"),
        (["--topology", "v5e:2x2", "--data.bach", "6"], "did you mean '--data.batch'"),
        (["--topology", "v5e:2x2", "--price", "-1"], "--price is -1.0; it must be that of a chip for an hour, 0 or more"),
        (["--topology", "v5e:2x2", "--price", "4", "--search"], "--price is of a plan, and --search makes none"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(options, message, tmp_path, capsys):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(tmp_path / "small.py"), *options])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
