"""GGUF files of every family: llama.cpp computes what transformers and we compute, and what comes back is the same model."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from chosen import long_after
from llama_cpp import continued, plain_tokenizer
from small_models import query_logits, torch_logits

from a3jax.config import LongScaling, ModelConfig
from a3jax.errors import UserError
from a3jax.weights.gguf.writer import write_gguf
from a3jax.weights.safetensors_writer import Tensor
from a3jax.weights.source import open_source

FAMILIES = (
    *("gemma2_released", "gemma3_released", "olmo3", "phi3_released", "granite", "smollm3_released"),
    *("llama", "llama_biased", "llama3_released", "mistral_local", "qwen2", "qwen3_linear", "olmo", "olmo2", "gemma"),
    *("mixtral", "qwen3_moe", "olmoe_released"),
)
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


@pytest.mark.parametrize("case", long_after(6, FAMILIES))
def test_what_is_written_comes_back(case, pretrained, imported, written):
    source, folder, found = open_source(written(case)), open_source(pretrained(case)), imported(case).config
    lost = {"starts": False, "family": "llama" if found.family == "mistral" else found.family}
    if found.experts is not None:  # GGUF has no name for their loss
        lost["experts"] = dataclasses.replace(found.experts, balance=0.0)
    if case in ("mistral_local", "mixtral"):  # nor llama.cpp local layers of these
        lost |= {"context": found.local_window, "local_layers": (), "local_window": None}
    if isinstance(found.rope_scaling, LongScaling):  # in float32
        rounded = round(found.rope_scaling.attention_factor, 7)
        lost["rope_scaling"] = dataclasses.replace(found.rope_scaling, attention_factor=rounded)
    assert source.config == dataclasses.replace(found, **lost)
    assert source.shapes() == folder.shapes()
    for name in folder.shapes():
        theirs, ours = folder.read(name), source.read(name)
        if found.norm == "rms_offset" and name.endswith("norm.weight"):  # stored with 1 added
            np.testing.assert_allclose(ours, theirs, atol=1.2e-7, rtol=0)
        else:
            np.testing.assert_array_equal(ours, theirs)


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
        tokens = [*prompt, *(one.token for one in found), *([END] if len(found) < TOKENS else [])]
        row[: len(tokens)] = tokens
        own.append(range(len(prompt), len(tokens)))
        log_probs += [one.log_prob for one in found]
    return rows, own, np.array(log_probs)


def _agree(logits_BxTxV: np.ndarray, rows: np.ndarray, own: list[range], log_probs: np.ndarray, apart: float) -> None:
    """Assert that what llama.cpp has written is most probable of all, and as probable as it says."""
    log_p = torch.log_softmax(torch.from_numpy(logits_BxTxV.copy()), -1).numpy()
    places = [(b, t) for b, own_b in enumerate(own) for t in own_b]
    assert [log_p[b, t - 1].argmax() for b, t in places] == [rows[b, t] for b, t in places]
    said = [log_p[b, t - 1, rows[b, t]] for b, t in places if rows[b, t] != END]
    np.testing.assert_allclose(log_probs, said, atol=apart, rtol=0)


def _apart(config: ModelConfig) -> float:
    """Nats: llama.cpp takes GELU from a table of float16."""
    return 1e-2 if config.activation == "gelu_tanh" else 1e-4


@pytest.mark.parametrize("case", long_after(6, FAMILIES))
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


OTHERS = {
    "gemma2": "another scale of attention's scores",
    "smollm3": "biases beyond those of its family",
    "olmoe": "queries, keys and values that are cut off",
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case, pretrained, imported, tmp_path):
    with pytest.raises(UserError, match=f"a model with {OTHERS[case]} cannot be written as GGUF; export its folder instead"):
        _write(tmp_path / "model.gguf", pretrained(case), imported(case).config)
    assert list(tmp_path.iterdir()) == []
