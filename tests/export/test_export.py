"""Weights out: plain folders come back bit for bit, two-stream folders compute in PyTorch what they compute here."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from model_folders import load_arrays, save_model
from safetensors.numpy import load_file
from small_models import CASES, ODD, few, load, query_logits, random_groups, tokens, torch_logits

from a3jax.checkpoint.folder import Checkpoint, find, load_params
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.card import model_card
from a3jax.export.exporter import export_model
from a3jax.export.verify import verify
from a3jax.likelihood.forward import predict
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import arrange
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source
from a3jax.weights.table import QUERY_SEED, entries

OTHERS = [case for case in CASES | ODD if case != "gemma2"]
ADAPTED = Provenance("source", "float32", steps=3000, tokens=2_000_000, stages=("in_order_1", "random_4"))


def _adapted(checkpoint: Checkpoint, out, **changes) -> Checkpoint:
    """The checkpoint with a record of training, seeds of its own, and changes to its configuration."""
    arrays, config = load_arrays(checkpoint), dataclasses.replace(checkpoint.config, **changes)
    shapes, random = {"query_seed": (config.width,)}, np.random.default_rng(0)
    if config.seeding == "two_sided":
        shapes["successor_seed"] = (config.width, config.width)
    for name, shape in shapes.items():
        arrays[name] = random.normal(size=shape).astype(arrays["query_seed"].dtype)
    save_model(out, config, arrays, ADAPTED, byte_codec().files)
    return find(out)


def _assert_equal(a: dict, b: dict) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype.name, a) == jax.tree.map(lambda x: x.dtype.name, b)


@pytest.mark.parametrize("case", few("gemma2", "phi3", "mixtral"))
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.long), "bfloat16"])
def test_a_family_folder_is_the_source_bit_for_bit(case, dtype, pretrained, imported, tmp_path):
    checkpoint = imported(case, dtype)
    export_model(checkpoint, tmp_path / "out", checkpoint.config.family)
    _assert_equal(load_file(pretrained(case, dtype) / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors"))
    assert open_source(tmp_path / "out").config == checkpoint.config
    assert type(load(tmp_path / "out")).__name__ == f"{(CASES | ODD)[case][0]}ForCausalLM"
    ids = tokens()
    np.testing.assert_array_equal(torch_logits(tmp_path / "out", ids), torch_logits(pretrained(case, dtype), ids))


@pytest.mark.parametrize(
    ("case", "changes"),
    few("gemma2", "mixtral", changes=({},), plain=("llama", "olmo2"))
    + [("olmo2", {"seeding": "learned"}), ("gemma2", {"seeding": "two_sided"}), ("llama", {"content": "slot"})],
)
def test_the_twin_computes_both_streams(case, changes, pretrained, imported, tmp_path):
    checkpoint = _adapted(imported(case), tmp_path / "model", **changes)
    export_model(checkpoint, tmp_path / "out")
    ids = tokens()
    if changes != {"seeding": "learned"}:  # with learned seeds the queries predict from left to right too
        plain = torch_logits(pretrained(case), ids)
        np.testing.assert_allclose(torch_logits(tmp_path / "out", ids), plain, atol=1e-4, rtol=0)
    for groups in [np.broadcast_to(np.arange(48), (2, 48)).copy(), random_groups(5, 4), random_groups(0, 7)]:
        ours = query_logits(checkpoint, ids, groups)
        np.testing.assert_allclose(torch_logits(tmp_path / "out", ids, groups=groups), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["gemma2", *(pytest.param(case, marks=pytest.mark.long) for case in OTHERS)])
def test_a_step_has_the_gradients_of_pytorch(case, imported, tmp_path):
    checkpoint = _adapted(imported(case), tmp_path / "model")
    export_model(checkpoint, tmp_path / "out")
    ids, groups, given = tokens(), random_groups(5, 4), np.arange(48) < 5
    model = load(tmp_path / "out")
    labels = torch.from_numpy(np.where(given, -100, ids))
    theirs = model(torch.from_numpy(ids), groups=torch.from_numpy(groups), labels=labels).loss
    theirs.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    config, params = checkpoint.config, load_params(checkpoint)
    order = jax.vmap(lambda group: arrange(group, jnp.asarray(given), jnp.ones(48, int), config.seeding))(jnp.asarray(groups))

    @jax.jit
    def loss(params):
        predictions = predict(nnx.merge(graph(config), params), jnp.asarray(ids, jnp.int32), order, Compute())
        return predictions.nll_sum(40) / predictions.weight_BxL.sum()

    ours, own = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    unfelt = []
    for entry in (*entries(config), QUERY_SEED):
        gradient = np.asarray(entry.get(nnx.to_pure_dict(own)))
        for index, name in entry.names(gradient.shape).items():
            one, expected = gradient[index], gradients.pop(name)
            if max(abs(one).max(), abs(expected).max()) < 1e-7:
                unfelt.append(name)
                continue
            np.testing.assert_allclose(entry.to_theirs(one), expected, atol=1e-4 * abs(expected).max(), rtol=0, err_msg=name)
    assert not gradients
    # Where keys are not rotated their bias moves all scores of a row alike: its gradient is zero, and rounding.
    assert len(unfelt) == (1 if case.startswith("smollm3") else 0)
    assert all(name.endswith("k_proj.bias") for name in unfelt)


@pytest.mark.parametrize("seeding", ["learned", "two_sided"])
@pytest.mark.parametrize("case", ["llama3", "qwen2", "olmo2", "phi3", pytest.param("gemma3_text", marks=pytest.mark.long)])
def test_a_two_stream_folder_imports_again_bit_for_bit(case, seeding, imported, tmp_path):
    checkpoint = _adapted(imported(case, "bfloat16"), tmp_path / "model", seeding=seeding, content="slot")
    export_model(checkpoint, tmp_path / "out")
    import_model(open_source(tmp_path / "out"), tmp_path / "again")
    again = find(tmp_path / "again")
    assert again.config == checkpoint.config
    assert again.record == checkpoint.record == ADAPTED
    _assert_equal(load_arrays(checkpoint), load_arrays(again))


def test_what_pytorch_saves_imports_again(imported, tmp_path):
    checkpoint = _adapted(imported("qwen3"), tmp_path / "model")
    export_model(checkpoint, tmp_path / "out")
    load(tmp_path / "out").save_pretrained(tmp_path / "saved")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True).save_pretrained(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.config == checkpoint.config
    import_model(source, tmp_path / "again")
    _assert_equal(load_arrays(checkpoint), load_arrays(find(tmp_path / "again")))
    assert type(load(tmp_path / "saved")).__name__ == "A3ForCausalLM"


def test_shards_have_an_index_and_come_back(imported, tmp_path):
    checkpoint = imported("llama")
    export_model(checkpoint, tmp_path / "out", shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in jax.tree.leaves(load_arrays(checkpoint)))
    load(tmp_path / "out")
    import_model(open_source(tmp_path / "out"), tmp_path / "again")
    _assert_equal(load_arrays(checkpoint), load_arrays(find(tmp_path / "again")))
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name} is missing"):
        open_source(tmp_path / "out")


def test_the_folder_says_what_it_is(imported, tmp_path):
    export_model(_adapted(imported("llama"), tmp_path / "model"), tmp_path / "out", dtype="bfloat16")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("3,000 steps", "2,000,000 tokens", "in_order_1 → random_4", "successor", "llama", "# out"):
        assert fact in card
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (config.model_type, config.a3_family, config.seeding) == ("a3", "llama", "successor")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 257
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("def f(x):\n").input_ids == [256, *byte_codec().encode("def f(x):\n")]


@pytest.mark.parametrize(
    ("style", "changes"),
    [("a3", {}), ("llama", {}), ("llama", {"objective": "block_diffusion", "mask_block": 4})],
    ids=["a3", "llama", "masked"],
)
def test_the_code_of_the_card_runs_as_printed(style, changes, imported, tmp_path, monkeypatch, capsys):
    checkpoint = _adapted(imported("llama"), tmp_path / "model")
    changed = dataclasses.replace(checkpoint, record=dataclasses.replace(ADAPTED, **changes))
    export_model(changed, tmp_path / "out", style)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    known: dict = {}
    exec(code, known)
    assert ("logits" in known) if changes else capsys.readouterr().out.strip()
    if style == "a3":
        told = transformers.pipeline("text-generation", "out", trust_remote_code=True)("def f", max_new_tokens=3)
        assert told[0]["generated_text"].startswith("def f")


@pytest.mark.long
def test_mixed_dtypes_stay_mixed(imported, tmp_path):
    arrays = load_arrays(imported("llama", "bfloat16"))
    arrays = arrays | {"final_norm": load_arrays(imported("llama"))["final_norm"]}
    save_model(tmp_path / "model", imported("llama").config, arrays, ADAPTED, byte_codec().files)
    export_model(find(tmp_path / "model"), tmp_path / "out")
    import_model(open_source(tmp_path / "out"), tmp_path / "again")
    _assert_equal(arrays, load_arrays(find(tmp_path / "again")))
    assert verify(find(tmp_path / "model"), tmp_path / "out").max_logit_difference < 1e-4


SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "pad_token_id": 3, "suppress_tokens": [4, 5]}


@pytest.mark.parametrize("style", ["a3", "llama"])
def test_end_tokens_and_sampling_defaults_travel(style, pretrained, tmp_path):
    """Through an import, its record, an export and a second import, to what transformers generates with."""
    folder = shutil.copytree(pretrained("llama"), tmp_path / "source")
    (folder / "generation_config.json").write_text(json.dumps(SAMPLING | {"eos_token_id": [257, 5], "bos_token_id": 256}))
    import_model(open_source(folder), tmp_path / "model")
    export_model(find(tmp_path / "model"), tmp_path / "out", style)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == SAMPLING | {"eos_token_id": [257, 5], "bos_token_id": 256}
    model = load(tmp_path / "out")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out") if style == "a3" else model.generation_config
    for name, value in written.items():
        assert getattr(generation, name) == value
    assert (model.config.eos_token_id, model.config.pad_token_id) == ([257, 5], 3)
    again = open_source(tmp_path / "out")
    assert again.config.end_tokens == (257, 5)
    assert again.record.generation == find(tmp_path / "model").record.generation == SAMPLING
    found = verify(find(tmp_path / "model"), tmp_path / "out")  # greedily, whatever the defaults
    assert found.problem is None


def test_a_padding_token_that_is_none_does_not_travel(pretrained, tmp_path):
    folder = shutil.copytree(pretrained("llama"), tmp_path / "source")
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": -1}))
    assert open_source(folder).record.generation == {}
    (folder / "generation_config.json").unlink()
    raw = json.loads((folder / "config.json").read_text()) | {"pad_token_id": 3}
    (folder / "config.json").write_text(json.dumps(raw))
    assert open_source(folder).record.generation == {"pad_token_id": 3}


@pytest.mark.parametrize("style", ["a3", "llama"])
def test_code_of_others_passes_neither_in_nor_out(style, pretrained, tmp_path):
    folder = shutil.copytree(pretrained("llama"), tmp_path / "source")
    (folder / "hostile.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Hostile: pass\n"
    )
    hostile = {
        "tokenizer_config.json": {"AutoTokenizer": ["hostile.Hostile", None]},
        "config.json": {"AutoConfig": "hostile.Hostile", "AutoModelForCausalLM": "hostile.Hostile"},
    }
    for name, auto in hostile.items():
        raw = json.loads((folder / name).read_text()) | {"auto_map": auto, "tokenizer_class": "Hostile"}
        (folder / name).write_text(json.dumps(raw))
    import_model(open_source(folder), tmp_path / "model")
    assert "Hostile" not in "".join(file.read_text() for file in (tmp_path / "model").glob("*.json"))
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "model")  # as an import of an older a3jax has it
    export_model(find(tmp_path / "model"), tmp_path / "out", style)
    assert "ostile" not in "".join(file.read_text() for file in (tmp_path / "out").iterdir() if file.suffix == ".json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("def f(x):\n").input_ids == [256, *byte_codec().encode("def f(x):\n")]
    load(tmp_path / "out")
    assert not (folder / "ran").exists()


def test_wrong_styles_and_existing_folders_are_refused(imported, tmp_path):
    with pytest.raises(
        UserError, match=r"cannot export as 'mistral'.*can be exported as 'a3', 'llama', 'gguf', 'adapters' or 'peft'"
    ):
        export_model(imported("llama"), tmp_path / "out", "mistral")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_model(imported("llama"), tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_numbers_that_are_not_finite_are_refused(value, imported, tmp_path):
    arrays = load_arrays(imported("llama"))
    arrays["final_norm"] = np.full_like(arrays["final_norm"], value)
    save_model(tmp_path / "model", imported("llama").config, arrays, ADAPTED, byte_codec().files)
    with pytest.raises(UserError, match=r"model.norm.weight holds NaN, or numbers too large for float16"):
        export_model(find(tmp_path / "model"), tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_card_speaks_of_a_source_only_where_there_was_one(tiny):
    adapted, random = (model_card("x", tiny(), record, True) for record in (ADAPTED, Provenance("random", steps=3, tokens=9)))
    assert "adapted from a left-to-right one" in adapted
    assert "licence" in adapted
    assert "trained from random weights" in random
    assert "licence" not in random
