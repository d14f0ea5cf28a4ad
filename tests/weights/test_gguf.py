"""GGUF files in: names, permuted rows, quantized blocks, metadata and tokenizer become what the folder would have been."""

import dataclasses
import json
import math
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from model_folders import load_arrays
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from a3jax.checkpoint.folder import find
from a3jax.config import LinearScaling, Llama3Scaling, Rope, YarnScaling
from a3jax.errors import UserError
from a3jax.model.rope import frequencies
from a3jax.weights.importer import import_model
from a3jax.weights.pretrained import pretrained as pretrained_model
from a3jax.weights.source import open_source

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)  # Hugging Face's -> GGUF's, by llama.cpp


def _write(path: Path, folder: Path, split: str = "smollm", quantized: bool = False, **extra) -> Path:
    """A Llama folder as a GGUF file, as llama.cpp's converter lays it out."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    words = ALPHABET + ["<|start|>", "<|end|>", "Ġt", "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words + [f"<{i}>" for i in range(300 - len(words))])
    writer.add_token_types([1] * 256 + [3, 3] + [1] * 42)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    for name, value in extra.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(f"{name}.weight", value)
        else:
            writer.add_key_value(name.replace("__", "."), *value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        target = NAMES.get_name(name, try_suffixes=(".weight",))
        if "q_proj" in name or "k_proj" in name:
            heads = tensor.shape[0] // config["head_dim"]
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if quantized and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_equals_the_folder_it_was_made_from(pretrained, imported, tmp_path):
    import_model(open_source(_write(tmp_path / "model.gguf", pretrained("llama"))), tmp_path / "out")
    found, expected = find(tmp_path / "out"), imported("llama")
    assert found.config == expected.config
    assert (found.record.dtype, found.record.dequantized) == ("float32", False)
    for name, array in load_arrays(expected)["blocks"].items():
        np.testing.assert_array_equal(load_arrays(found)["blocks"][name], array)
    np.testing.assert_array_equal(load_arrays(found)["head"], load_arrays(expected)["head"])


def test_a_file_loads_as_its_import_does(pretrained, tmp_path):
    file = _write(tmp_path / "model.gguf", pretrained("llama"), quantized=True)
    import_model(open_source(file), tmp_path / "out")
    direct, imported = pretrained_model(file), pretrained_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, direct.load(), imported.load())
    assert direct.codec.files == imported.codec.files
    assert direct.codec.document("the") == imported.codec.document("the")


def test_quantized_blocks_are_dequantized(pretrained, tmp_path):
    source = open_source(_write(tmp_path / "model.gguf", pretrained("llama"), quantized=True))
    assert source.record.dequantized
    for name, tensor in load_file(pretrained("llama") / "model.safetensors").items():
        np.testing.assert_allclose(source.read(name), tensor, atol=np.abs(tensor).max() / 127)


def test_llama3_frequencies_are_recognized(pretrained, imported, tmp_path):
    folder = pretrained("llama")
    plain = imported("llama").config
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    scaled = dataclasses.replace(plain, rope_theta=5e5, rope_scaling=scaling)
    divisor = frequencies(scaled, Rope(5e5)) / frequencies(scaled, Rope(5e5, scaling))
    theta = ("llama.rope.freq_base", 5e5, gguf.GGUFValueType.FLOAT32)
    path = _write(tmp_path / "a.gguf", folder, rope_freqs=divisor, llama__rope__freq_base=theta[1:])
    assert open_source(path).config.rope_scaling == scaling
    path = _write(tmp_path / "b.gguf", folder, rope_freqs=divisor[::-1].copy(), llama__rope__freq_base=theta[1:])
    with pytest.raises(UserError, match=r"rope_freqs.weight is not the scaling of Llama 3"):
        open_source(path)
    path = _write(tmp_path / "c.gguf", folder, rope_freqs=np.full_like(divisor, np.nan), llama__rope__freq_base=theta[1:])
    with pytest.raises(UserError, match=r"c.gguf: rope_freqs.weight is not the scaling of Llama 3"):
        open_source(path)


@pytest.mark.parametrize("keep", [0, 3, 30, 500, 5000, -2000])
def test_truncated_files_are_refused(keep, pretrained, tmp_path):
    path = _write(tmp_path / "model.gguf", pretrained("llama"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.gguf is truncated or not a GGUF file") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


STRING, INT = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
FLOAT, BOOL = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.BOOL
NEUTRAL = {
    "a factor of 1": {"llama__rope__scaling__factor": (1.0, FLOAT)},
    "a factor of 0": {"llama__rope__scaling__factor": (0.0, FLOAT)},
    "a factor that is switched off": {
        "llama__rope__scaling__type": ("none", STRING),
        "llama__rope__scaling__factor": (4.0, FLOAT),
        "llama__rope__scale_linear": (4.0, FLOAT),
    },
    "a factor before the older one": {
        "llama__rope__scaling__factor": (1.0, FLOAT),
        "llama__rope__scale_linear": (4.0, FLOAT),
    },
    "causal attention": {"llama__attention__causal": (True, BOOL)},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_metadata_by_which_llama_cpp_changes_nothing_are_taken(name, pretrained, imported, tmp_path):
    source = open_source(_write(tmp_path / "model.gguf", pretrained("llama"), **NEUTRAL[name]))
    assert source.config == imported("llama").config


YARN = {"llama__rope__scaling__type": ("yarn", STRING), "llama__rope__scaling__factor": (4.0, FLOAT)}
SCALED = {
    "a factor without a type": ({"llama__rope__scaling__factor": (4.0, FLOAT)}, LinearScaling(4.0)),
    "a factor of older files": ({"llama__rope__scale_linear": (4.0, FLOAT)}, LinearScaling(4.0)),
    "yarn": (YARN, YarnScaling(4.0, 256, 32.0, 1.0, 0.1 * math.log(4) + 1)),
    "yarn with its own factor": (
        YARN
        | {
            "llama__rope__scaling__attn_factor": (0.5, FLOAT),
            "llama__rope__scaling__original_context_length": (64, INT),
        },
        YarnScaling(4.0, 64, 32.0, 1.0, 0.5 * (0.1 * math.log(4) + 1)),
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaling_is_read_as_llama_cpp_reads_it(name, pretrained, imported, tmp_path):
    said, scaling = SCALED[name]
    source = open_source(_write(tmp_path / "model.gguf", pretrained("llama"), **said))
    assert source.config == dataclasses.replace(imported("llama").config, rope_scaling=scaling)


def test_all_tokens_that_end_a_turn_are_end_tokens(pretrained, tmp_path):
    more = {"tokenizer__ggml__eot_token_id": (7, INT), "tokenizer__ggml__eom_token_id": (257, INT)}
    assert open_source(_write(tmp_path / "model.gguf", pretrained("llama"), **more)).config.end_tokens == (257, 7)


BAD = {
    "NaN factor": ({"llama__rope__scaling__factor": (float("nan"), FLOAT)}, "factor' is nan; it must be a positive number"),
    "yarn without a factor": ({"llama__rope__scaling__type": ("yarn", STRING)}, "rope.scaling.factor' is missing"),
    "yarn of another kind": (
        YARN | {"llama__rope__scaling__yarn_log_multiplier": (0.1, FLOAT)},
        r"RoPE scaling inside a GGUF file \('yarn', factor 4.0\) is not supported",
    ),
    "longrope in a Llama": (
        {f"rope_factors_{length}": np.ones(6, np.float32) for length in ("short", "long")},
        "RoPE scaling of this kind .LongScaling. is not that of a file of 'llama'",
    ),
    "longrope without factors": ({"llama__rope__scaling__type": ("longrope", STRING)}, "RoPE scaling inside a GGUF file"),
    "attention factor": ({"llama__rope__scaling__attn_factor": (2.0, FLOAT)}, "attn_factor' is 2.0, which is not supported"),
    "not causal": ({"llama__attention__causal": (False, BOOL)}, "attention.causal' is False, which is not supported"),
    "base 0": ({"llama__rope__freq_base": (0.0, FLOAT)}, "freq_base' is 0.0; it must be a positive number"),
    "NaN epsilon": (
        {"llama__attention__layer_norm_rms_epsilon": (float("nan"), FLOAT)},
        "rms_epsilon' is nan; it must be a positive number",
    ),
    "a billion layers": ({"llama__block_count": (10**9, INT)}, "1000000000 layers are asked for, .* 30 tensors"),
    "negative heads": ({"llama__attention__head_count": (-4, gguf.GGUFValueType.INT32)}, "head_count' is -4; it must be"),
    "true end token": ({"tokenizer__ggml__eos_token_id": (True, BOOL)}, "eos_token_id' is True; it must be the id"),
    "negative end token": (
        {"tokenizer__ggml__eos_token_id": (-1, gguf.GGUFValueType.INT32)},
        "eos_token_id' is -1; it must be the id",
    ),
    "another architecture": ({"general__architecture": ("falcon", STRING)}, "architecture 'falcon' is not supported"),
    "partial": ({"llama__rope__dimension_count": (4, INT)}, "rope.dimension_count' is not the head width"),
    "no heads": ({"llama__attention__head_count": (0, INT)}, "head_count' is 0"),
    "start token": ({"tokenizer__ggml__bos_token_id": (300, INT)}, "bos_token_id' is 300; it must be the id of a token"),
    "heads": ({"llama__attention__head_count_kv": (3, INT)}, "4 query heads cannot share 3 key-value heads"),
    "context": ({"llama__context_length": ("long", STRING)}, "context_length' is long; expected one int"),
    "tokenizer": ({"tokenizer__ggml__pre": ("default", STRING)}, "tokenizer 'gpt2/default' cannot be rebuilt"),
    "kind": ({"tokenizer__ggml__model": ("bert", STRING)}, "tokenizer 'bert/smollm' cannot be rebuilt"),
    "scores": ({"tokenizer__ggml__model": ("llama", STRING)}, "scores' is missing"),
    "types": ({"tokenizer__ggml__token_type": (7, INT)}, "metadata do not fit together"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_imported_is_refused(name, pretrained, tmp_path, monkeypatch):
    extra, message = BAD[name]
    add = gguf.GGUFWriter.add_key_value

    def replaced(self, key, *value, **kind):
        self.kv_data[0].pop(key, None)
        add(self, key, *value, **kind)

    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", replaced)
    with pytest.raises(UserError, match=message):
        open_source(_write(tmp_path / "model.gguf", pretrained("llama"), **extra))
