"""Pretrained folders in: they compute what transformers computes, and what cannot be imported is refused in one line."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import load_arrays
from safetensors.numpy import load_file, save_file
from small_models import LLAMA3, few, query_logits, tokens, torch_logits
from source_folders import assert_logits_as_in_transformers, copied, with_config, with_generation

from a3jax.checkpoint.folder import find
from a3jax.errors import UserError
from a3jax.weights import huggingface
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@pytest.mark.parametrize("case", few("gemma2", "mixtral", "gpt_oss", plain=("llama", "qwen3", "olmo2")))
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


def test_pytorch_files_import_too(pretrained, imported, tmp_path):
    folder = copied(pretrained("llama"), tmp_path)
    torch.save({k: torch.from_numpy(v) for k, v in _tensors(folder).items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    source = open_source(folder)
    assert source.record.dtype == "float32"
    np.testing.assert_array_equal(source.read("model.norm.weight"), load_arrays(imported("llama"))["final_norm"])


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


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
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def _twice(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    save_file({"model.norm.weight": np.ones(32, np.float32)}, folder / "model-2.safetensors")


def _large_tokenizer(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["beyond"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def _in_place_of_the_weights(make):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        make(folder / "model.safetensors")

    return damage


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
    "gemma 4": (with_config(model_type="gemma4_text"), "'gemma4_text' is not supported: it needs heads of another width"),
    "qwen 3.5": (with_config(model_type="qwen3_5_text"), "'qwen3_5_text' is not supported: it needs linear attention"),
    "gemma with images": (with_config(model_type="gemma3"), "'gemma3' is not supported: it needs images beside the text"),
    "near miss": (with_config(model_type="lama"), "did you mean 'llama'"),
    "missing field": (with_config(hidden_size="absent"), "field 'hidden_size' is missing"),
    "ill-typed field": (with_config(num_attention_heads="four"), "num_attention_heads is 'four'"),
    "zero heads": (with_config(num_attention_heads=0), "num_attention_heads is 0"),
    "quantized": (
        with_config(quantization_config={}),
        "quantization_config: quant_method .* is not supported; known are gptq",
    ),
    "more experts than there are": (
        with_config(model_type="mixtral", num_experts_per_tok=9),
        "num_experts_per_tok 9 of 8 experts is not supported",
    ),
    "another slope of gates": (with_config(model_type="gpt_oss", swiglu_alpha=1.5), r"swiglu_alpha 1.5 is not supported"),
    "layers without experts": (with_config(model_type="qwen3_moe", mlp_only_layers=[0]), r"mlp_only_layers \[0\] is not"),
    "unknown RoPE": (
        with_config(rope_parameters={"rope_type": "axial"}),
        "rope_type 'axial' is not supported; supported are",
    ),
    "yarn without factor": (with_config(rope_parameters={"rope_type": "yarn"}), "rope_parameters has no 'factor'"),
    "few long factors": (
        with_config(rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        "short_factors are 1 numbers; 6 waves need as many",
    ),
    "clipped queries": (with_config(model_type="olmo2", clip_qkv=8.0), "clip_qkv .* is not supported"),
    "biases that the family has not": (
        with_config(model_type="mistral", attention_bias=True),
        "attention_bias in a model of model_type 'mistral' is not supported",
    ),
    "llama3 without factor": (with_config(rope_parameters={"rope_type": "llama3"}), "RoPE settings cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer damaged": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    "tokenizer too large": (_large_tokenizer, "ids up to 300, but the weights have 300 embeddings"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no .*safetensors file"),
    "truncated": (_truncate, "model.safetensors is truncated or damaged"),
    "empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated or damaged"),
    "shard missing": (_with_index({"model.norm.weight": "model-2.safetensors"}), "model-2.safetensors is missing"),
    "index lists more": (_with_index({"more": "model-1.safetensors"}), "tensor more is missing"),
    "two of one name": (_twice, "model-2.safetensors and .*model-1.safetensors both hold model.norm.weight"),
    "index is odd": (_with_index([1]), "weight_map does not name a file"),
    "missing tensor": (_with_tensors(norm=None), "tensor model.norm.weight is missing"),
    "extra tensor": (_with_tensors(more=np.ones(3, np.float32)), "model.more.weight is not part of a llama model"),
    "wrong shape": (_with_tensors(norm=np.ones(31, np.float32)), r"model.norm.weight has shape \(31,\).*asks for \(32,\)"),
    "NaN": (_with_tensors(layers__2__mlp__up_proj=np.full((48, 32), np.nan, np.float32)), "2.mlp.up_proj.weight holds NaN"),
    "integers": (_with_tensors(norm=np.ones(32, np.int8)), "model.norm.weight is I8, and nothing says how"),
    "a pipe": (_in_place_of_the_weights(os.mkfifo), "model.safetensors is no regular file"),
    "a folder": (_in_place_of_the_weights(Path.mkdir), "model.safetensors is no regular file"),
    "a device": (_in_place_of_the_weights(lambda path: path.symlink_to("/dev/zero")), "is no regular file"),
    "a link to nothing": (_in_place_of_the_weights(lambda path: path.symlink_to("nowhere")), "is no regular file"),
    "a pipe of torch": (_in_place_of_the_weights(lambda path: os.mkfifo(path.with_name("pytorch_model.bin"))), "no regular"),
    "a billion layers": (with_config(num_hidden_layers=10**9), "1000000000 layers .* the weights have 30 tensors"),
    "a vocabulary of a billion": (with_config(vocab_size=10**9), r"embed_tokens.weight has shape \(300, 32\)"),
    "layers beyond int32": (with_config(num_hidden_layers=10**30), "num_hidden_layers is 10*; it must be a whole number"),
    "half a layer": (with_config(num_hidden_layers=2.5), "num_hidden_layers is 2.5; it must be a whole number"),
    "true layers": (with_config(num_hidden_layers=True), "num_hidden_layers is True; it must be a whole number"),
    "no epsilon": (with_config(rms_norm_eps=0), "rms_norm_eps is 0; it must be a positive number"),
    "NaN epsilon": (with_config(rms_norm_eps=math.nan), r"config\.json is not JSON: NaN is no number"),
    "infinite base": (with_config(rope_theta=math.inf), r"config\.json is not JSON: Infinity is no number"),
    "base 0": (with_config(rope_parameters=None, rope_theta=0), "rope_theta is 0; it must be a positive number"),
    "base 0 in rope_parameters": (with_config(rope_parameters={"rope_theta": 0}), "rope_theta is 0; it must be"),
    "negative base": (with_config(rope_parameters={"rope_theta": -1.0}), "rope_theta is -1.0; it must be"),
    "factor 0": (with_config(rope_scaling=LLAMA3 | {"factor": 0}), "rope_scaling: factor is 0; it must be a positive"),
    "factors in the wrong order": (with_config(rope_scaling=LLAMA3 | {"high_freq_factor": 0.5}), "is not below"),
    "RoPE by layer type": (with_config(rope_parameters={"full_attention": {"rope_theta": 1e6}}), "by layer type"),
    "RoPE that is a list": (with_config(rope_scaling=[4]), r"rope_scaling is \[4\]; it must be an object"),
    "two original lengths": (
        with_config(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 32}, original_max_position_embeddings=64),
        "original_max_position_embeddings is 64, and 32 in rope_scaling",
    ),
    "head neither tied nor not": (
        with_config(tie_word_embeddings="false"),
        "tie_word_embeddings is 'false'; it must be true",
    ),
    "end token -1": (with_config(eos_token_id=-1), "config.json: eos_token_id is -1; it must be the id of a token"),
    "end token beyond": (with_config(eos_token_id=[257, 300]), "eos_token_id is 300; it must be the id of a token"),
    "true end token": (with_config(eos_token_id=True), "eos_token_id is True; it must be the id of a token"),
    "end tokens in lists": (with_config(eos_token_id=[[257]]), r"eos_token_id is \[257\]; it must be the id of a token"),
    "start tokens": (with_config(bos_token_id=[256]), r"bos_token_id is \[256\]; it must be the id of a token"),
    "start token as text": (with_config(bos_token_id="256"), "bos_token_id is '256'; it must be the id of a token"),
    "end token of generation": (with_generation(eos_token_id=[257, 300]), "generation_config.json: eos_token_id is 300"),
    "generation that is no object": (lambda f: (f / "generation_config.json").write_text("[]"), "is not a JSON object"),
    "NaN temperature": (with_generation(temperature=math.nan), r"generation_config\.json is not JSON: NaN is no number"),
    "a family of later": (
        with_config(model_type="olmo9", layer_types=["full_attention"] * 3),
        "'olmo9' is not supported: beyond a Llama's fields, its config.json sets layer_types; supported are",
    ),
    "hostile pickle": (_hostile_pickle, "cannot be loaded safely"),
    "pickled list": (_pickled_list, "not a plain dictionary of tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_and_nothing_is_written(name, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = BAD[name]
    folder = copied(pretrained("llama"), tmp_path)
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
    folder = copied(pretrained("llama"), tmp_path)
    _with_tensors(norm=np.full(32, 1e6, np.float32))(folder)
    with pytest.raises(UserError, match=r"model.norm.weight does not fit into float16"):
        import_model(open_source(folder), tmp_path / "out", "float16")


def test_shards_of_another_save_beside_a_whole_file_are_ignored(pretrained, imported, tmp_path):
    folder = copied(pretrained("llama"), tmp_path)
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = tokens()
    np.testing.assert_array_equal(torch_logits(folder, ids), torch_logits(pretrained("llama"), ids))
    np.testing.assert_array_equal(open_source(folder).read("model.norm.weight"), load_arrays(imported("llama"))["final_norm"])


def test_weights_in_another_layout_beside_them_are_ignored(pretrained, tmp_path):
    folder = copied(pretrained("mistral"), tmp_path)
    save_file({"tok_embeddings.weight": np.ones((2, 2), np.float32)}, folder / "consolidated.safetensors")
    assert "tok_embeddings.weight" not in open_source(folder).shapes()


@pytest.mark.parametrize("files", ["safetensors", "bin"])
@pytest.mark.parametrize("first_row", [0, 299])
def test_a_stored_head_that_should_be_tied_is_used_where_it_is_another(
    files, first_row, pretrained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(huggingface, "_ROWS", 64)
    folder = copied(pretrained("llama"), tmp_path)
    with_config(tie_word_embeddings=True)(folder)
    tensors = _tensors(folder)
    tensors["lm_head.weight"][:first_row] = tensors["model.embed_tokens.weight"][:first_row]
    save_file(tensors, folder / "model.safetensors")
    if files == "bin":
        torch.save({k: torch.from_numpy(v) for k, v in _tensors(folder).items()}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert_logits_as_in_transformers(folder, tmp_path / "out")
    assert not find(tmp_path / "out").config.tied_head
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "lm_head.weight is stored and differs from the embedding" in line] == said[:1]


def test_a_head_that_equals_the_embedding_or_stands_for_it_is_tied(pretrained, tmp_path, capsys):
    folder = copied(pretrained("llama"), tmp_path)
    with_config(tie_word_embeddings=True)(folder)
    tensors = _tensors(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert_logits_as_in_transformers(folder, tmp_path / "copied")
    del tensors["model.embed_tokens.weight"]  # of two names for one tensor, safetensors.torch.save_model keeps the first
    save_file(tensors, folder / "model.safetensors")
    assert_logits_as_in_transformers(folder, tmp_path / "alone")
    assert all(find(tmp_path / out).config.tied_head for out in ("copied", "alone"))
    assert "a3jax:" not in capsys.readouterr().err
