"""GGUF files out: read by transformers they compute what the folder computes, read by us they are the same numbers."""

import dataclasses
import functools
import json
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from model_folders import load_arrays, save_model
from safetensors.numpy import load_file
from small_models import tokens, torch_logits
from tokenizers import Tokenizer, models, pre_tokenizers

from a3jax.checkpoint.folder import find
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Llama3Scaling
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.weights.gguf.writer import write_gguf
from a3jax.weights.importer import import_model
from a3jax.weights.safetensors_writer import Tensor
from a3jax.weights.source import open_source


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, bytes]:
    """The bytes of GPT-2's alphabet, a start, an end and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<|start|>", "<|end|>", "he"])}
    made = Tokenizer(models.BPE(vocab, [("h", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|start|>", "<|end|>"])
    return {"tokenizer.json": made.to_str().encode()}


def _tensors(folder: Path) -> list[Tensor]:
    """A folder's tensors, each read when it is asked for."""
    arrays = load_file(folder / "model.safetensors")
    return [Tensor(name, array.shape, array.dtype, functools.partial(arrays.get, name)) for name, array in arrays.items()]


def _write(path: Path, pretrained, imported, tokenizer, case: str, dtype: str | None = None, **changes) -> Path:
    config = dataclasses.replace(imported(case).config, **changes)
    write_gguf(path, config, _tensors(pretrained(case)), tokenizer, "small", dtype)
    return path


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_and_we_read_the_same_model(case, pretrained, imported, tokenizer, tmp_path):
    path = _write(tmp_path / "model.gguf", pretrained, imported, tokenizer, case)
    own = transformers.AutoConfig.from_pretrained(pretrained(case))  # transformers does not read Qwen 3's head width
    how = {"config": own} if case == "qwen3" else {}
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32, **how)
    with torch.no_grad():
        logits = read.eval()(torch.from_numpy(tokens())).logits.numpy()
    np.testing.assert_array_equal(logits, torch_logits(pretrained(case), tokens()))

    source = open_source(path)
    expected = dataclasses.replace(imported(case).config, family="llama" if case == "mistral" else case, starts=False)
    assert source.config == expected
    assert (source.record.dtype, source.record.dequantized) == ("float32", False)
    arrays = load_file(pretrained(case) / "model.safetensors")
    assert source.shapes() == {name: array.shape for name, array in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)


MIXTURES = {"mixtral": "llama", "qwen3_moe": "qwen3moe", "olmoe_released": "olmoe"}
"""What GGUF calls a family with experts."""


@pytest.mark.parametrize(
    "case", ["mixtral", *(pytest.param(case, marks=pytest.mark.long) for case in ("qwen3_moe", "olmoe_released"))]
)
def test_experts_are_stacked_by_the_names_of_llama_cpp_and_come_back(case, pretrained, imported, tokenizer, tmp_path):
    path = _write(tmp_path / "model.gguf", pretrained, imported, tokenizer, case, "bfloat16")
    reader = gguf.GGUFReader(path)
    architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[MIXTURES[case]]
    known = {name.format(bid=0) for kind, name in gguf.TENSOR_NAMES.items() if kind in gguf.MODEL_TENSORS[architecture]}
    assert {
        tensor.name.replace(".1.", ".0.").replace(".2.", ".0.").removesuffix(".weight") for tensor in reader.tensors
    } <= known
    source, arrays = open_source(path), load_file(pretrained(case) / "model.safetensors")
    without = dataclasses.replace(imported(case).config.experts, balance=0.0)  # for which GGUF has no name
    own = {"experts": without, "starts": False, "local_layers": (), "local_window": None}
    own["context"] = 16 if case == "mixtral" else 256
    assert source.config == dataclasses.replace(imported(case).config, **own)
    assert source.shapes() == {name: array.shape for name, array in arrays.items()}
    for name, array in arrays.items():
        kept = array.ndim < 2 or name.endswith(("mlp.gate.weight", "moe.gate.weight"))
        np.testing.assert_array_equal(source.read(name), array if kept else array.astype("bfloat16"))


def test_experts_that_llama_cpp_weighs_otherwise_are_not_written(pretrained, imported, tokenizer, tmp_path):
    other = {"experts": dataclasses.replace(imported("olmoe").config.experts, normalized=True)}
    with pytest.raises(UserError, match="a model with other weights of experts cannot be written as GGUF"):
        _write(tmp_path / "model.gguf", pretrained, imported, tokenizer, "olmoe", **other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matrices_are_rounded_and_vectors_are_not(dtype, pretrained, imported, tokenizer, tmp_path):
    source = open_source(_write(tmp_path / "model.gguf", pretrained, imported, tokenizer, "qwen2", dtype))
    assert (source.record.dtype, source.record.dequantized) == (dtype, False)
    for name, array in load_file(pretrained("qwen2") / "model.safetensors").items():
        expected = array.astype(dtype) if array.ndim == 2 else array
        assert source.dtype(name) == source.read(name).dtype == expected.dtype
        np.testing.assert_array_equal(source.read(name), expected)
    file_type = gguf.GGUFReader(tmp_path / "model.gguf").fields["general.file_type"].contents()
    assert gguf.LlamaFileType(file_type).name == f"MOSTLY_{ {'bfloat16': 'BF16', 'float16': 'F16'}[dtype] }"


def test_an_export_comes_back(pretrained, imported, tokenizer, tmp_path):
    config, arrays = imported("qwen3", "bfloat16").config, load_arrays(imported("qwen3", "bfloat16"))
    save_model(tmp_path / "model", config, arrays, Provenance("source"), tokenizer)
    export_model(find(tmp_path / "model"), tmp_path / "out.gguf", "gguf")
    import_model(open_source(tmp_path / "out.gguf"), tmp_path / "again", "bfloat16")
    again = find(tmp_path / "again")
    assert again.config == config
    del arrays["query_seed"]
    for name, array in _flat(arrays).items():
        np.testing.assert_array_equal(_flat(load_arrays(again))[name], array)


def _flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    items = {f"{prefix}{name}": value for name, value in tree.items()}
    nested = [_flat(value, f"{name}.") for name, value in items.items() if isinstance(value, dict)]
    return {name: value for part in (items, *nested) for name, value in part.items() if not isinstance(value, dict)}


def test_llama3_frequencies_are_stored_as_divisors(pretrained, imported, tokenizer, tmp_path):
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    changes = {"rope_theta": 5e5, "rope_scaling": scaling, "context": 16384}
    path = _write(tmp_path / "model.gguf", pretrained, imported, tokenizer, "llama3", **changes)
    source = open_source(path)
    assert (source.config.rope_scaling, source.config.rope_theta) == (scaling, 5e5)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}["rope_freqs.weight"]
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
    rope["original_max_position_embeddings"] = 8192
    theirs = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 1 / 5e5 ** (np.arange(4) / 4)
    np.testing.assert_allclose(stored, plain / scaled.numpy(), rtol=1e-5)


def test_one_tensor_is_held_at_a_time(pretrained, imported, tokenizer, tmp_path):
    held: list[weakref.ref] = []

    def read(array: np.ndarray) -> np.ndarray:
        assert not [ref for ref in held if ref() is not None]
        held.append(weakref.ref(copy := array.copy()))
        return copy

    tensors = [t._replace(read=functools.partial(read, t.read())) for t in _tensors(pretrained("llama"))]
    told: list[int] = []
    write_gguf(tmp_path / "model.gguf", imported("llama").config, tensors, tokenizer, "small", None, told.append)
    assert len(held) == len(tensors)
    assert told == [tensor.bytes for tensor in tensors]


@pytest.mark.parametrize("case", ["biases", "tokenizer", "overflow", "nan"])
def test_what_cannot_be_written_is_refused(case, pretrained, imported, tokenizer, tmp_path):
    model, dtype, value, message = {
        "biases": ("smollm3", None, 1.0, "a model with biases beyond those of its family cannot be written as GGUF"),
        "tokenizer": ("llama", None, 1.0, "way of splitting text"),
        "overflow": ("llama", "float16", 1e6, "model.embed_tokens.weight holds NaN, or numbers too large for float16"),
        "nan": ("llama", None, np.nan, "model.embed_tokens.weight holds NaN"),
    }[case]
    config, arrays = imported(model).config, load_arrays(imported(model))
    arrays["embedding"] = arrays["embedding"] * np.float32(value)
    files = byte_codec().files if case == "tokenizer" else tokenizer
    save_model(tmp_path / "model", config, arrays, Provenance("source"), files)
    with pytest.raises(UserError, match=message):
        export_model(find(tmp_path / "model"), tmp_path / "out.gguf", "gguf", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_tokenizer_travels(pretrained, imported, tokenizer, tmp_path):
    source = open_source(_write(tmp_path / "model.gguf", pretrained, imported, tokenizer, "llama"))
    there, back = (Tokenizer.from_buffer(files["tokenizer.json"]) for files in (tokenizer, source.tokenizer))
    assert back.encode("the <|end|> hé").ids == there.encode("the <|end|> hé").ids
    assert back.get_vocab() == there.get_vocab()
    assert json.loads(source.tokenizer["tokenizer_config.json"])["eos_token"] == "<|end|>"
