"""Adapters by themselves: with their source they are the model again, bit for bit; with another they are refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import Checkpoint, find
from a3jax.checkpoint.provenance import Provenance
from a3jax.cli import main
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.weights.adapter_files import DESCRIPTION, AdaptedSource
from a3jax.weights.source import open_source

RECORD = Provenance("source", "float32", steps=3000, tokens=2_000_000, stages=("random_4",), blanks_end=True)


@pytest.fixture(scope="module", params=["successor", "two_sided"])
def adapted(request, tiny, network, tmp_path_factory) -> Checkpoint:
    config = tiny(layers=2, vocab=300, adapter_rank=3, seeding=request.param, start_token=256, end_tokens=(257,))
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("adapted") / "model"
    save_model(out, config, params, RECORD, byte_codec().files)
    return find(out)


@pytest.fixture(scope="module")
def source(adapted, tmp_path_factory) -> Path:
    """What it was adapted from, as transformers has it."""
    out = tmp_path_factory.mktemp("source") / "llama"
    export_model(adapted, out, "llama")
    return out


def test_adapters_and_their_source_are_the_model(adapted, source, tmp_path):
    export_model(adapted, tmp_path / "adapters", "adapters")
    held = sum(file.stat().st_size for file in (tmp_path / "adapters").iterdir())
    assert held < (source / "model.safetensors").stat().st_size
    main(["import", str(source), str(tmp_path / "again"), "--adapters", str(tmp_path / "adapters")])
    again = find(tmp_path / "again")
    assert (again.config, again.record) == (adapted.config, adapted.record)
    jax.tree.map(np.testing.assert_array_equal, load_arrays(again), load_arrays(adapted))


def test_half_precision_is_that_of_the_adapters_alone(adapted, source, tmp_path):
    export_model(adapted, tmp_path / "adapters", "adapters", dtype="bfloat16")
    main(["import", str(source), str(tmp_path / "again"), "--adapters", str(tmp_path / "adapters")])
    before, after = load_arrays(adapted), load_arrays(find(tmp_path / "again"))
    np.testing.assert_array_equal(after["blocks"]["gate"], before["blocks"]["gate"])
    rounded = before["blocks"]["gate_in"].astype(after["blocks"]["gate_in"].dtype)
    np.testing.assert_array_equal(after["blocks"]["gate_in"], rounded)


def _no_folder(folder: Path) -> None:
    (folder / DESCRIPTION).unlink()


def _other_norms(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description | {"norms": "0" * 64}))


def _other_shape(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    description["model"]["ff_width"] = 48
    (folder / DESCRIPTION).write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_folder, "written by a3jax export --as adapters"),
        (_other_norms, "the norms of .* are not those"),
        (_other_shape, "ff_width is 48, of .* 24; these are another model's adapters"),
    ],
)
def test_what_does_not_belong_together_is_refused(damage, words, adapted, source, tmp_path):
    export_model(adapted, tmp_path / "adapters", "adapters")
    damage(tmp_path / "adapters")
    with pytest.raises(UserError, match=words):
        AdaptedSource(open_source(source), tmp_path / "adapters")


def test_a_model_without_query_adapters_has_none_to_export(model_folder, tmp_path):
    with pytest.raises(UserError, match="has no adapters of the query stream alone; export it as 'a3'"):
        export_model(find(model_folder), tmp_path / "adapters", "adapters")
    assert not (tmp_path / "adapters").exists()
