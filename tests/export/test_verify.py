"""`verify` passes what is right, and names what is not."""

import dataclasses
import sys
from pathlib import Path

import pytest
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import Checkpoint, find
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.export.verify import TOLERANCE, Verification, verify

pytestmark = pytest.mark.slow


def _changed(checkpoint: Checkpoint, out: Path, seed_scale: float = 1.0, **changes) -> Checkpoint:
    """The checkpoint with another query seed, and changes to its configuration."""
    arrays = load_arrays(checkpoint)
    arrays["query_seed"] = arrays["query_seed"] * seed_scale
    save_model(out, dataclasses.replace(checkpoint.config, **changes), arrays, Provenance("source"), byte_codec().files)
    return find(out)


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_streams_and_what_they_choose(imported, tmp_path):
    checkpoint, out = imported("qwen3"), tmp_path / "out"
    export_model(checkpoint, out, dtype="bfloat16")
    before = _files(out)
    found = verify(checkpoint, out)
    assert found.max_logit_difference < 1e-4
    assert found.greedy_tokens == 64 + 47
    assert found.first_difference is found.margin is found.problem is None
    assert _files(out) == before
    assert not [name for name in sys.modules if name.startswith("exported_folder")]

    problem = verify(_changed(checkpoint, tmp_path / "other", 1.5), out).problem
    assert problem.startswith("logits in PyTorch differ by")

    code = (out / "decoding_a3.py").read_text()
    wrong = code.replace("(count + index) // group_size - count // group_size", "index // group_size")
    assert wrong != code
    (out / "decoding_a3.py").write_text(wrong)
    found = verify(checkpoint, out)
    assert found.max_logit_difference < 1e-4
    assert found.first_difference >= 64
    assert found.greedy_tokens == found.first_difference + 1
    assert found.margin > TOLERANCE
    assert found.problem.startswith(f"greedy token {found.first_difference} is another in PyTorch")


def test_the_family_folder_is_the_left_to_right_view(imported, tmp_path):
    checkpoint = _changed(imported("llama"), tmp_path / "model", 1.5, seeding="learned")
    export_model(checkpoint, tmp_path / "out", "llama")
    found = verify(checkpoint, tmp_path / "out")
    assert found.max_logit_difference < 1e-4
    assert (found.greedy_tokens, found.problem) == (64, None)
    found = verify(_changed(checkpoint, tmp_path / "other", norm_eps=0.1), tmp_path / "out")
    assert found.max_logit_difference > TOLERANCE
    assert found.first_difference < 64


def test_a_tie_may_break_either_way():
    assert Verification(1e-4, 12, 11, TOLERANCE / 2).problem is None
    assert "greedy token 11" in Verification(1e-4, 12, 11, TOLERANCE * 2).problem
    assert "logits" in Verification(float("nan"), 111, None, None).problem


def test_without_torch_it_says_what_to_install(imported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'a3jax\[torch\]'"):
        verify(imported("llama"), tmp_path)
