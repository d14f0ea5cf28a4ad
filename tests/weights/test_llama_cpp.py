"""GGUF files of every family: llama.cpp computes what transformers and we compute, and what comes back is the same model."""

import dataclasses
import functools
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from chosen import long_after
from llama_cpp import continued, plain_tokenizer
from small_models import LLAMA_CPP, query_logits, torch_logits

from a3jax.checkpoint.folder import find
from a3jax.config import LongScaling, ModelConfig, YarnScaling
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.weights.gguf.writer import write_gguf
from a3jax.weights.importer import import_model
from a3jax.weights.safetensors_writer import Tensor
from a3jax.weights.source import open_source

FAMILIES = (
    *("gemma2_released", "gemma3_released", "olmo3", "phi3_released", "granite", "smollm3_released"),
    *("llama", "llama_biased", "llama3_released", "mistral_local", "qwen2", "qwen3_yarn", "olmo", "olmo2", "gemma"),
    *("mixtral", "qwen3_moe", "olmoe_released", "gpt_oss_released"),
)
WITH_YARN = tuple(case for case in LLAMA_CPP if case.endswith("_yarn") and case not in FAMILIES)
LENGTH, TOKENS, END = 48, 8, 257


@pytest.fixture(scope="module")
def written(pretrained, imported, tmp_path_factory):
    """The GGUF file of a case."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in made:
            path = tmp_path_factory.mktemp("gguf") / f"{case}.gguf"
            _write(path, pretrained(case), imported(case).config)
            made[case] = path
        return made[case]

    return make


def _write(path: Path, folder: Path, config: ModelConfig) -> None:
    source = open_source(folder)
    named = source.shapes().items()
    tensors = [Tensor(name, shape, source.dtype(name), functools.partial(source.read, name)) for name, shape in named]
    write_gguf(path, config, tensors, plain_tokenizer(), "small")


@pytest.mark.parametrize("case", long_after(6, (*FAMILIES, *WITH_YARN)))
def test_what_is_written_comes_back(case, pretrained, imported, written):
    source, folder, found = open_source(written(case)), open_source(pretrained(case)), imported(case).config
    lost = {"starts": False, "family": "llama" if found.family == "mistral" else found.family}
    if found.experts is not None:  # GGUF has no name for their loss
        lost["experts"] = dataclasses.replace(found.experts, balance=0.0)
    if found.family in ("mistral", "mixtral") and found.local_window is not None:  # nor llama.cpp local layers of these
        lost |= {"context": found.local_window, "local_layers": (), "local_window": None}
    assert _rounded(source.config) == _rounded(dataclasses.replace(found, **lost))
    assert source.shapes() == folder.shapes()
    for name in folder.shapes():
        theirs, ours = folder.read(name), source.read(name)
        if found.norm == "rms_offset" and name.endswith("norm.weight"):  # stored with 1 added
            np.testing.assert_allclose(ours, theirs, atol=1.2e-7, rtol=0)
        else:
            np.testing.assert_array_equal(ours, theirs)


def _rounded(config: ModelConfig) -> ModelConfig:
    """The model with the one number that a file has in float32, and a folder in float64."""
    scaling = config.rope_scaling
    if not isinstance(scaling, LongScaling | YarnScaling):
        return config
    rounded = dataclasses.replace(scaling, attention_factor=round(scaling.attention_factor, 6))
    return dataclasses.replace(config, rope_scaling=rounded)


def _continued(file: Path, config: ModelConfig) -> tuple[np.ndarray, list[range], np.ndarray]:
    """Rows that llama.cpp has written to the end, B x LENGTH, which of their tokens are its own, and their log-probabilities.

    What is written is longer than any window that llama.cpp has.
    """
    windowed = open_source(file).config
    length = min(LENGTH, windowed.context)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 256, length - TOKENS).tolist() for _ in range(2)]
    rows, own, log_probs = np.zeros((2, LENGTH), np.int64), [], []
    for row, prompt, found in zip(rows, prompts, continued(file, prompts, TOKENS, windowed.context)):
        tokens = [*prompt, *(one.token for one in found)]
        assert len(found) == TOKENS or tokens[-1] == END
        row[: len(tokens)] = tokens
        own.append(range(len(prompt), len(tokens)))
        log_probs += [one.log_prob for one in found]
    return rows, own, np.array(log_probs)


def _agree(logits_BxTxV: np.ndarray, rows: np.ndarray, own: list[range], log_probs: np.ndarray, apart: float) -> None:
    """Assert that what llama.cpp has written is most probable of all, and as probable as it says."""
    log_p = torch.log_softmax(torch.from_numpy(logits_BxTxV.copy()), -1).numpy()
    places = [(b, t) for b, own_b in enumerate(own) for t in own_b]
    assert [log_p[b, t - 1].argmax() for b, t in places] == [rows[b, t] for b, t in places]
    said = [log_p[b, t - 1, rows[b, t]] for b, t in places]
    np.testing.assert_allclose(log_probs, said, atol=apart, rtol=0)


def _apart(config: ModelConfig) -> float:
    """Nats: llama.cpp takes GELU from a table of float16."""
    return 1e-2 if config.activation == "gelu_tanh" else 1e-4


@pytest.mark.parametrize("case", long_after(6, (*FAMILIES, *WITH_YARN)))
def test_llama_cpp_writes_what_transformers_finds_most_probable(case, pretrained, imported, written):
    config = imported(case).config
    rows, own, log_probs = _continued(written(case), config)
    _agree(torch_logits(pretrained(case), rows), rows, own, log_probs, _apart(config))


@pytest.mark.long
@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_writes_what_we_find_most_probable(case, imported, written):
    config = imported(case).config
    rows, own, log_probs = _continued(written(case), config)
    logits = query_logits(imported(case), rows, np.tile(np.arange(LENGTH), (2, 1)))
    shifted = np.concatenate([logits[:, 1:], logits[:, :1]], axis=1)  # ours stand where they predict
    _agree(shifted, rows, own, log_probs, _apart(config))


@pytest.mark.long
def test_llama_cpp_computes_with_experts_in_four_bits_as_we_read_them(imported, written, tmp_path):
    """As published files of gpt-oss have them (MXFP4). llama.cpp has inputs of such products in eight bits."""
    plain, file = written("gpt_oss_released"), tmp_path / "four_bits.gguf"
    _with_experts_in_four_bits(plain, file)
    source = open_source(file)
    assert source.record.dequantized
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    apart = np.abs(source.read(name) - open_source(plain).read(name))
    assert 0 < apart.mean() < 0.2 * np.abs(source.read(name)).mean()
    import_model(source, tmp_path / "model")
    export_model(find(tmp_path / "model"), tmp_path / "folder", "gpt_oss")
    rows, own, log_probs = _continued(file, source.config)
    log_p = torch.log_softmax(torch.from_numpy(torch_logits(tmp_path / "folder", rows)), -1).numpy()
    said = [log_p[b, t - 1, rows[b, t]] for b, own_b in enumerate(own) for t in own_b]
    np.testing.assert_allclose(log_probs, said, atol=0.05, rtol=0)


def _with_experts_in_four_bits(plain: Path, file: Path) -> None:
    """The same file with matrices of experts in MXFP4."""
    reader, four_bits = gguf.GGUFReader(plain), gguf.GGMLQuantizationType.MXFP4
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], *field.types[1:2])
    for tensor in reader.tensors:
        if tensor.name.endswith("_exps.weight"):
            writer.add_tensor(tensor.name, gguf.quantize(np.array(tensor.data), four_bits), raw_dtype=four_bits)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


OTHERS = {
    "gemma2": "another scale of attention's scores",
    "smollm3": "biases beyond those of its family",
    "olmoe": "queries, keys and values that are cut off",
    "gpt_oss": "another gate_limit",
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case, pretrained, imported, tmp_path):
    with pytest.raises(UserError, match=f"a model with {OTHERS[case]} cannot be written as GGUF; export its folder instead"):
        _write(tmp_path / "model.gguf", pretrained(case), imported(case).config)
    assert list(tmp_path.iterdir()) == []
