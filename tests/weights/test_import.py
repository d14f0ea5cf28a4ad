"""Pretrained folders in: they compute what transformers computes, and what cannot be imported is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_models import CASES, query_logits, tokens, torch_logits

from a3jax.checkpoint import load_arrays
from a3jax.config import RopeScaling
from a3jax.errors import UserError
from a3jax.weights import families
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@pytest.mark.parametrize("case", CASES)
def test_the_query_stream_in_ar_order_is_the_source_model(case, pretrained, imported):
    ids = tokens()
    ours = query_logits(imported(case), ids, np.broadcast_to(np.arange(48), (2, 48)))
    theirs = torch_logits(pretrained(case), ids)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours[:, 1:], theirs[:, :-1], atol=1e-4, rtol=0)


def test_the_query_seed_starts_as_the_mean_embedding(imported):
    arrays = load_arrays(imported("llama"))
    np.testing.assert_allclose(arrays["query_seed"], arrays["embedding"].mean(0), atol=1e-6)


def test_bfloat16_stays_bfloat16_unless_told_otherwise(pretrained, imported, tmp_path):
    checkpoint = imported("llama", "bfloat16")
    assert checkpoint.record.dtype == "bfloat16"
    assert {a.dtype.name for a in load_arrays(checkpoint)["blocks"].values()} == {"bfloat16"}
    theirs = load_file(pretrained("llama", "bfloat16") / "model.safetensors")
    np.testing.assert_array_equal(load_arrays(checkpoint)["embedding"], theirs["model.embed_tokens.weight"])


@pytest.mark.parametrize("case", CASES)
def test_both_dialects_of_config_json_say_the_same(case, pretrained):
    new = json.loads((pretrained(case) / "config.json").read_text())
    rope = new.get("rope_parameters") or {"rope_theta": new["rope_theta"]} | (new.get("rope_scaling") or {})
    rest = {k: v for k, v in new.items() if k not in ("rope_parameters", "rope_theta", "rope_scaling")}
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"} if rope.get("rope_type") == "llama3" else None
    old = rest | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    config = families.from_hf(rest | {"rope_parameters": rope}, "config.json")
    assert config == families.from_hf(old, "config.json")
    assert config == families.from_hf(families.to_hf(config, "float32"), "config.json")
    assert config.rope_scaling == (RopeScaling(8.0, 1.0, 4.0, 32) if case == "llama3" else None)


def test_a_sliding_window_limits_the_context(pretrained):
    raw = json.loads((pretrained("mistral") / "config.json").read_text())
    assert families.from_hf(raw | {"sliding_window": 64}, "config.json").context == 64


def test_pytorch_files_import_too(pretrained, imported, tmp_path):
    folder = _copy(pretrained("llama"), tmp_path)
    torch.save({k: torch.from_numpy(v) for k, v in _tensors(folder).items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    source = open_source(folder)
    assert source.record.dtype == "float32"
    np.testing.assert_array_equal(source.read("model.norm.weight"), load_arrays(imported("llama"))["final_norm"])


def _copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "source"))


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def _with_config(**changes):
    def damage(folder):
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))

    return damage


def _with_tensors(**changes):
    """Tensors replaced, or dropped where None, by the part of their name after `model.`."""

    def damage(folder):
        tensors = _tensors(folder) | {f"model.{k.replace('__', '.')}.weight": v for k, v in changes.items()}
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")

    return damage


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _with_index(weight_map):
    def damage(folder):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def _large_tokenizer(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["beyond"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(raw))


class _Hostile:
    def __reduce__(self):
        return Path.touch, (Path("hostile-code-ran"),)


def _hostile_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Hostile()}, folder / "pytorch_model.bin")


def _pickled_list(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")


BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "gemma": (_with_config(model_type="gemma2"), "'gemma2' is not supported: it needs soft-capped logits"),
    "near miss": (_with_config(model_type="lama"), "did you mean 'llama'"),
    "missing field": (_with_config(hidden_size="absent"), "field 'hidden_size' is missing"),
    "ill-typed field": (_with_config(num_attention_heads="four"), "num_attention_heads is 'four'"),
    "zero heads": (_with_config(num_attention_heads=0), "num_attention_heads is 0"),
    "quantized": (_with_config(quantization_config={}), "quantization_config"),
    "yarn": (_with_config(rope_parameters={"rope_type": "yarn"}), "rope_type 'yarn' is not supported"),
    "llama3 without factor": (_with_config(rope_parameters={"rope_type": "llama3"}), "RoPE settings cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer damaged": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    "tokenizer too large": (_large_tokenizer, "ids up to 300, but the weights have 300 embeddings"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no .*safetensors file"),
    "truncated": (_truncate, "model.safetensors is truncated or damaged"),
    "empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated or damaged"),
    "shard missing": (_with_index({"model.norm.weight": "model-2.safetensors"}), "model-2.safetensors is missing"),
    "index lists more": (_with_index({"more": "model.safetensors"}), "tensor more is missing"),
    "index is odd": (_with_index([1]), "weight_map does not name a file"),
    "missing tensor": (_with_tensors(norm=None), "tensor model.norm.weight is missing"),
    "extra tensor": (_with_tensors(more=np.ones(3, np.float32)), "model.more.weight is not part of a llama model"),
    "wrong shape": (_with_tensors(norm=np.ones(31, np.float32)), r"model.norm.weight has shape \(31,\).*asks for \(32,\)"),
    "NaN": (_with_tensors(layers__2__mlp__up_proj=np.full((48, 32), np.nan, np.float32)), "2.mlp.up_proj.weight holds NaN"),
    "integers": (_with_tensors(norm=np.ones(32, np.int8)), "model.norm.weight is I8; only unquantized"),
    "hostile pickle": (_hostile_pickle, "cannot be loaded safely"),
    "pickled list": (_pickled_list, "not a plain dictionary of tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_and_nothing_is_written(name, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = BAD[name]
    folder = _copy(pretrained("llama"), tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        import_model(open_source(folder), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for name, message in [("notes.txt", "neither"), ("nowhere", "does not exist"), ("nowhere.gguf", "does not exist")]:
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / name)


def test_an_existing_folder_is_not_overwritten(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_model(open_source(pretrained("llama")), tmp_path / "out")


def test_numbers_too_large_for_float16_are_refused(pretrained, tmp_path):
    folder = _copy(pretrained("llama"), tmp_path)
    _with_tensors(norm=np.full(32, 1e6, np.float32))(folder)
    with pytest.raises(UserError, match=r"model.norm.weight does not fit into float16"):
        import_model(open_source(folder), tmp_path / "out", "float16")


def test_weights_in_another_layout_beside_them_are_ignored(pretrained, tmp_path):
    folder = _copy(pretrained("mistral"), tmp_path)
    save_file({"tok_embeddings.weight": np.ones((2, 2), np.float32)}, folder / "consolidated.safetensors")
    assert "tok_embeddings.weight" not in open_source(folder).shapes()
