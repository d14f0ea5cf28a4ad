"""Pretrained folders in: they compute what transformers computes, and what cannot be imported is refused in one line."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_models import CASES, LLAMA3, few, query_logits, tokens, torch_logits

from a3jax.checkpoint.folder import find, load_arrays
from a3jax.config import Experts, Rope, YarnScaling
from a3jax.errors import UserError
from a3jax.weights import configuration, families, huggingface
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@pytest.mark.parametrize("case", few("olmo3", "gemma2", "granite", "phi3", "smollm3", "mixtral", "gpt_oss"))
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


LOCAL = dict.fromkeys(("mistral_local", "olmo3", "phi3", "mixtral"), (0, 1, 2)) | {"gemma3_text": (0, 1)}
LOCAL |= dict.fromkeys(("gemma2", "gpt_oss"), (0, 2))


@pytest.mark.parametrize("case", CASES)
def test_both_dialects_of_config_json_say_the_same(case, pretrained):
    new = json.loads((pretrained(case) / "config.json").read_text())
    ropes = new["rope_parameters"]
    rope, local = ropes.get("full_attention", ropes), ropes.get("sliding_attention", {})
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    old |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope.get("partial_rotary_factor")}
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    old |= {"rope_local_base_freq": local["rope_theta"]} if case == "gemma3_text" else {}
    old["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    config = configuration.from_hf(new, "config.json")
    assert config == configuration.from_hf(old, "config.json")
    assert config == configuration.from_hf(configuration.to_hf(config, "float32"), "config.json")
    assert config.local_layers == LOCAL.get(case, ())


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


def _with_generation(**content):
    return lambda folder: (folder / "generation_config.json").write_text(json.dumps(content))


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
    "gemma 4": (_with_config(model_type="gemma4_text"), "'gemma4_text' is not supported: it needs heads of another width"),
    "qwen 3.5": (_with_config(model_type="qwen3_5_text"), "'qwen3_5_text' is not supported: it needs linear attention"),
    "gemma with images": (_with_config(model_type="gemma3"), "'gemma3' is not supported: it needs images beside the text"),
    "near miss": (_with_config(model_type="lama"), "did you mean 'llama'"),
    "missing field": (_with_config(hidden_size="absent"), "field 'hidden_size' is missing"),
    "ill-typed field": (_with_config(num_attention_heads="four"), "num_attention_heads is 'four'"),
    "zero heads": (_with_config(num_attention_heads=0), "num_attention_heads is 0"),
    "quantized": (
        _with_config(quantization_config={}),
        "quantization_config: quant_method .* is not supported; known are gptq",
    ),
    "more experts than there are": (
        _with_config(model_type="mixtral", num_experts_per_tok=9),
        "num_experts_per_tok 9 of 8 experts is not supported",
    ),
    "another slope of gates": (_with_config(model_type="gpt_oss", swiglu_alpha=1.5), r"swiglu_alpha 1.5 is not supported"),
    "layers without experts": (_with_config(model_type="qwen3_moe", mlp_only_layers=[0]), r"mlp_only_layers \[0\] is not"),
    "unknown RoPE": (
        _with_config(rope_parameters={"rope_type": "axial"}),
        "rope_type 'axial' is not supported; supported are",
    ),
    "yarn without factor": (_with_config(rope_parameters={"rope_type": "yarn"}), "rope_parameters has no 'factor'"),
    "few long factors": (
        _with_config(rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        "short_factors are 1 numbers; 6 waves need as many",
    ),
    "clipped queries": (_with_config(model_type="olmo2", clip_qkv=8.0), "clip_qkv .* is not supported"),
    "biases that the family has not": (
        _with_config(model_type="mistral", attention_bias=True),
        "attention_bias in a model of model_type 'mistral' is not supported",
    ),
    "llama3 without factor": (_with_config(rope_parameters={"rope_type": "llama3"}), "RoPE settings cannot be read"),
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
    "a billion layers": (_with_config(num_hidden_layers=10**9), "1000000000 layers .* the weights have 30 tensors"),
    "a vocabulary of a billion": (_with_config(vocab_size=10**9), r"embed_tokens.weight has shape \(300, 32\)"),
    "layers beyond int32": (_with_config(num_hidden_layers=10**30), "num_hidden_layers is 10*; it must be a whole number"),
    "half a layer": (_with_config(num_hidden_layers=2.5), "num_hidden_layers is 2.5; it must be a whole number"),
    "true layers": (_with_config(num_hidden_layers=True), "num_hidden_layers is True; it must be a whole number"),
    "no epsilon": (_with_config(rms_norm_eps=0), "rms_norm_eps is 0; it must be a positive number"),
    "NaN epsilon": (_with_config(rms_norm_eps=math.nan), r"config\.json is not JSON: NaN is no number"),
    "infinite base": (_with_config(rope_theta=math.inf), r"config\.json is not JSON: Infinity is no number"),
    "base 0": (_with_config(rope_parameters=None, rope_theta=0), "rope_theta is 0; it must be a positive number"),
    "base 0 in rope_parameters": (_with_config(rope_parameters={"rope_theta": 0}), "rope_theta is 0; it must be"),
    "negative base": (_with_config(rope_parameters={"rope_theta": -1.0}), "rope_theta is -1.0; it must be"),
    "factor 0": (_with_config(rope_scaling=LLAMA3 | {"factor": 0}), "rope_scaling: factor is 0; it must be a positive"),
    "factors in the wrong order": (_with_config(rope_scaling=LLAMA3 | {"high_freq_factor": 0.5}), "is not below"),
    "RoPE by layer type": (_with_config(rope_parameters={"full_attention": {"rope_theta": 1e6}}), "by layer type"),
    "RoPE that is a list": (_with_config(rope_scaling=[4]), r"rope_scaling is \[4\]; it must be an object"),
    "two original lengths": (
        _with_config(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 32}, original_max_position_embeddings=64),
        "original_max_position_embeddings is 64, and 32 in rope_scaling",
    ),
    "head neither tied nor not": (
        _with_config(tie_word_embeddings="false"),
        "tie_word_embeddings is 'false'; it must be true",
    ),
    "end token -1": (_with_config(eos_token_id=-1), "config.json: eos_token_id is -1; it must be the id of a token"),
    "end token beyond": (_with_config(eos_token_id=[257, 300]), "eos_token_id is 300; it must be the id of a token"),
    "true end token": (_with_config(eos_token_id=True), "eos_token_id is True; it must be the id of a token"),
    "end tokens in lists": (_with_config(eos_token_id=[[257]]), r"eos_token_id is \[257\]; it must be the id of a token"),
    "start tokens": (_with_config(bos_token_id=[256]), r"bos_token_id is \[256\]; it must be the id of a token"),
    "start token as text": (_with_config(bos_token_id="256"), "bos_token_id is '256'; it must be the id of a token"),
    "end token of generation": (_with_generation(eos_token_id=[257, 300]), "generation_config.json: eos_token_id is 300"),
    "generation that is no object": (lambda f: (f / "generation_config.json").write_text("[]"), "is not a JSON object"),
    "NaN temperature": (_with_generation(temperature=math.nan), r"generation_config\.json is not JSON: NaN is no number"),
    "a family of later": (
        _with_config(model_type="olmo9", layer_types=["full_attention"] * 3),
        "'olmo9' is not supported: beyond a Llama's fields, its config.json sets layer_types; supported are",
    ),
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


def test_shards_of_another_save_beside_a_whole_file_are_ignored(pretrained, imported, tmp_path):
    folder = _copy(pretrained("llama"), tmp_path)
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = tokens()
    np.testing.assert_array_equal(torch_logits(folder, ids), torch_logits(pretrained("llama"), ids))
    np.testing.assert_array_equal(open_source(folder).read("model.norm.weight"), load_arrays(imported("llama"))["final_norm"])


def test_weights_in_another_layout_beside_them_are_ignored(pretrained, tmp_path):
    folder = _copy(pretrained("mistral"), tmp_path)
    save_file({"tok_embeddings.weight": np.ones((2, 2), np.float32)}, folder / "consolidated.safetensors")
    assert "tok_embeddings.weight" not in open_source(folder).shapes()


def _imported(folder: Path, out: Path):
    import_model(open_source(folder), out)
    return find(out)


def _assert_logits_as_in_transformers(folder: Path, out: Path) -> None:
    ids = tokens()
    ours = query_logits(_imported(folder, out), ids, np.broadcast_to(np.arange(48), (2, 48)))
    np.testing.assert_allclose(ours[:, 1:], torch_logits(folder, ids)[:, :-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("files", ["safetensors", "bin"])
@pytest.mark.parametrize("first_row", [0, 299])
def test_a_stored_head_that_should_be_tied_is_used_where_it_is_another(
    files, first_row, pretrained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(huggingface, "_ROWS", 64)
    folder = _copy(pretrained("llama"), tmp_path)
    _with_config(tie_word_embeddings=True)(folder)
    tensors = _tensors(folder)
    tensors["lm_head.weight"][:first_row] = tensors["model.embed_tokens.weight"][:first_row]
    save_file(tensors, folder / "model.safetensors")
    if files == "bin":
        torch.save({k: torch.from_numpy(v) for k, v in _tensors(folder).items()}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    _assert_logits_as_in_transformers(folder, tmp_path / "out")
    assert not find(tmp_path / "out").config.tied_head
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "lm_head.weight is stored and differs from the embedding" in line] == said[:1]


def test_a_head_that_equals_the_embedding_or_stands_for_it_is_tied(pretrained, tmp_path, capsys):
    folder = _copy(pretrained("llama"), tmp_path)
    _with_config(tie_word_embeddings=True)(folder)
    tensors = _tensors(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    _assert_logits_as_in_transformers(folder, tmp_path / "copied")
    del tensors["model.embed_tokens.weight"]  # of two names for one tensor, safetensors.torch.save_model keeps the first
    save_file(tensors, folder / "model.safetensors")
    _assert_logits_as_in_transformers(folder, tmp_path / "alone")
    assert all(find(tmp_path / out).config.tied_head for out in ("copied", "alone"))
    assert "a3jax:" not in capsys.readouterr().err


NEW = {"rope_type": "default", "rope_theta": 500.0}
OLD = LLAMA3 | {"original_max_position_embeddings": 32}
ROPE_TWICE = {
    "scaling by hand in a new file": {"rope_parameters": NEW, "rope_scaling": OLD},
    "with a base beside both": {"rope_parameters": NEW, "rope_scaling": OLD, "rope_theta": 200.0},
    "with a base of its own": {"rope_parameters": NEW, "rope_scaling": OLD | {"rope_theta": 50.0}},
    "scaling in both": {"rope_parameters": OLD | {"factor": 2.0, "rope_theta": 500.0}, "rope_scaling": OLD},
    "no scaling in the old field": {"rope_parameters": OLD | {"rope_theta": 500.0}, "rope_scaling": NEW},
    "an empty old field": {"rope_parameters": OLD | {"rope_theta": 500.0}, "rope_scaling": {}},
    "two bases": {"rope_parameters": NEW, "rope_theta": 200.0},
    "no original length": {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    "the original length outside": {"rope_parameters": None, "rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("name", ROPE_TWICE)
def test_rope_said_twice_is_what_transformers_makes_of_it(name, pretrained, tmp_path, capsys):
    folder = _copy(pretrained("llama"), tmp_path)
    _with_config(**ROPE_TWICE[name])(folder)
    _assert_logits_as_in_transformers(folder, tmp_path / "out")
    both = ROPE_TWICE[name].get("rope_parameters") and ROPE_TWICE[name].get("rope_scaling")
    assert ("rope_scaling stands in place of all of rope_parameters" in capsys.readouterr().err) == bool(both)


@pytest.mark.parametrize("family", [family.name for family in families.FAMILIES])
def test_where_config_json_is_silent_it_means_what_transformers_takes(family):
    sizes = {"vocab_size": 300000, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 12}
    stated = {"model_type": family, "num_attention_heads": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 9000, **sizes}
    theirs = transformers.AutoConfig.for_model(**stated)
    ours = configuration.from_hf(stated, "config.json")
    kinds, window = getattr(theirs, "layer_types", None), getattr(theirs, "sliding_window", None)
    slides = [window is not None and (kinds is None or kinds[i] == "sliding_attention") for i in range(12)]
    ropes = theirs.rope_parameters
    ends = theirs.eos_token_id
    if ours.experts is not None:
        normalized = getattr(theirs, "norm_topk_prob", True)  # as Mixtral has it
        weight = theirs.router_aux_loss_coef
        active, biases = theirs.num_experts_per_tok, family == "gpt_oss"
        assert ours.experts == Experts(theirs.num_local_experts, active, normalized, weight, biases)
        assert ours.ff_width == getattr(theirs, "moe_intermediate_size", 64)
    assert ours == dataclasses.replace(
        ours,
        kv_heads=theirs.num_key_value_heads,
        head_width=getattr(theirs, "head_dim", None) or 512 // 32,
        context=9000,
        rope_theta=ropes.get("full_attention", ropes)["rope_theta"],
        local_rope=Rope(ropes["sliding_attention"]["rope_theta"]) if "sliding_attention" in ropes else None,
        local_layers=tuple(i for i in range(12) if slides[i]),
        local_window=window if any(slides) else None,
        unrotated_layers=tuple(i for i, turns in enumerate(getattr(theirs, "no_rope_layers", ())) if not turns),
        rope_scaling=yarn(ropes) if ropes.get("rope_type") == "yarn" else None,
        output_bias=getattr(theirs, "attention_bias", False),
        activation="gelu_sigmoid"
        if hasattr(theirs, "swiglu_alpha")
        else {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}[
            getattr(theirs, "hidden_activation", None) or theirs.hidden_act
        ],
        gate_limit=getattr(theirs, "swiglu_limit", None),
        qkv_limit=getattr(theirs, "clip_qkv", None),
        norm_eps=getattr(theirs, "rms_norm_eps", 1e-5),
        embedding_scale=getattr(theirs, "embedding_multiplier", 512**0.5 if "gemma" in family else 1.0),
        attention_scale=getattr(
            theirs,
            "attention_multiplier",
            theirs.query_pre_attn_scalar**-0.5 if hasattr(theirs, "query_pre_attn_scalar") else None,
        ),
        attention_cap=getattr(theirs, "attn_logit_softcapping", None),
        logit_cap=getattr(theirs, "final_logit_softcapping", None),
        logit_divisor=getattr(theirs, "logits_scaling", 1.0),
        tied_head=theirs.tie_word_embeddings,
        start_token=theirs.bos_token_id,
        end_tokens=() if ends is None else (ends,),
    )


def yarn(said):
    """YaRN as `rope_parameters` have it; the factor is the paper's (arXiv 2309.00071, equation 22)."""
    factor, betas = said["factor"], (said["beta_fast"], said["beta_slow"])
    return YarnScaling(factor, said["original_max_position_embeddings"], *betas, 0.1 * math.log(factor) + 1, said["truncate"])


def test_sliding_windows_are_those_that_transformers_uses():
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    stated = sizes | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 9000}

    def local(family, **fields):
        config = configuration.from_hf(stated | {"model_type": family} | fields, "config.json")
        assert config.context == 9000
        return config.local_window if config.local_layers == (0, 1) else config.local_layers

    assert local("mistral", sliding_window=None) == local("qwen2", sliding_window=64) == ()
    assert local("mistral", sliding_window=64, use_sliding_window=False) == 64
    assert local("qwen2", use_sliding_window=True) == ()
    assert local("qwen2", use_sliding_window=True, max_window_layers=1) == (1,)
    with pytest.raises(UserError, match="sliding_window is 0; it must be"):
        local("mistral", sliding_window=0)
    with pytest.raises(UserError, match=r"layer_types .* without use_sliding_window is not supported"):
        local("qwen3", layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(UserError, match=r"layer_types \['chunked_attention'\] is not supported"):
        local("gemma2", layer_types=["chunked_attention"])


ENDS = {
    "only in generation_config.json": ({"eos_token_id": "absent"}, {"eos_token_id": [5, 6]}, (5, 6)),
    "more of them there": ({}, {"eos_token_id": [5, 257]}, (257, 5)),
    "none there": ({}, {"temperature": 0.5}, (257,)),
    "in neither": ({"eos_token_id": "absent"}, {}, (2,)),
    "nowhere, and said so": ({"eos_token_id": None}, {"eos_token_id": None}, ()),
    "twice": ({"eos_token_id": [5, 5]}, {"eos_token_id": 5}, (5,)),
}


@pytest.mark.parametrize("name", ENDS)
def test_end_tokens_are_those_of_both_files(name, pretrained, tmp_path):
    model, generation, expected = ENDS[name]
    folder = _copy(pretrained("llama"), tmp_path)
    raw = json.loads((folder / "config.json").read_text()) | model
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
    _with_generation(**generation)(folder)
    config = open_source(folder).config
    assert config.end_tokens == expected
    stops = transformers.GenerationConfig.from_pretrained(folder).eos_token_id or []
    assert set(stops if isinstance(stops, list) else [stops]) <= set(config.end_tokens)


def test_no_suggestion_takes_one_family_for_another():
    names = {family.name for family in families.FAMILIES}
    others = set(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES) - names
    assert {"ministral3", "llama4", "gpt2"} <= others
    for name in [*others, "qwen", "olmo9", None, 7, [], "x" * 10**6]:
        with pytest.raises(UserError, match="is not supported") as caught:
            families.family_of(name)
        assert "did you mean" not in str(caught.value)
        assert len(str(caught.value)) < 300
    for name, meant in {
        "lama": "llama",
        "LLaMA": "llama",
        "qwen-2": "qwen2",
        "mitsral": "mistral",
        "olmmo2": "olmo2",
    }.items():
        with pytest.raises(UserError, match=f"; did you mean '{meant}'"):
            families.family_of(name)


def test_what_a_llama_writes_is_not_taken_for_what_is_missing():
    written = transformers.LlamaConfig(rope_scaling=LLAMA3).to_dict() | {"model_type": "other", "head_dim": 8}
    with pytest.raises(UserError, match="'other' is not supported; supported are"):
        configuration.from_hf(written, "config.json")


ODD = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**9, 10**30, -(10**30), 1e-320, 1e308, math.nan, math.inf, -math.inf, 0.5, -0.0]),
    st.sampled_from([None, True, False, "", "8", "NaN", [], [1], {}, {"rope_type": "llama3"}, [[[]]]]),
)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_values_are_refused_in_one_line_or_do_no_harm(data, pretrained, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("odd")
    folder = _copy(pretrained("llama3"), tmp_path)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text())
        inner = raw.get("rope_parameters", {})
        for field in data.draw(st.lists(st.sampled_from([*raw, *inner, "rope_theta", "rope_scaling"]), max_size=2)):
            (inner if field in inner and data.draw(st.booleans()) else raw)[field] = data.draw(ODD)
        (folder / name).write_text(json.dumps(raw))
    try:
        source = open_source(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500  # noqa: PT017, PT018, either outcome is right
    else:
        import_model(source, tmp_path / "out")
        assert find(tmp_path / "out").config == source.config
