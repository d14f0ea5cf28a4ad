"""`a3jax inspect`: what each kind of folder is, from headers alone."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import save_model

from a3jax.checkpoint.folder import find
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import AdaptConfig, Config, DataConfig, Stage
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.files.strict import to_json
from a3jax.model.parameters import count, shapes
from a3jax.show.describe import describe
from a3jax.train.loop import train

HISTORY = Provenance(
    source="elsewhere", dtype="bfloat16", dequantized=True, steps=7, tokens=900, stages=("in_order_1", "random_4")
)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    config = tiny(vocab=258, layers=2, start_token=256)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), nnx.to_pure_dict(shapes(config)))
    params["head"] = params["head"].astype("bfloat16")
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, config, params, HISTORY, byte_codec().files)
    return folder


def _history_is_told(facts):
    assert facts["source"] == "elsewhere, dequantized to bfloat16"
    assert (facts["steps_trained"], facts["tokens_seen"]) == (7, 900)
    assert facts["curriculum"] == "in_order_1 -> random_4"


def test_a_model_folder(model):
    facts = describe(model)
    config = find(model).config
    assert facts["what"] == "model folder"
    assert facts["parameters"] == count(config)
    share = 258 * config.width / count(config)
    assert facts["dtype"] == f"float32 {1 - share:.1%}, bfloat16 {share:.1%}"
    assert facts["bytes"] > 4 * count(config) * (1 - share)
    assert (facts["family"], facts["layers"], facts["vocabulary"]) == ("llama", 2, 258)
    _history_is_told(facts)


def test_nothing_is_loaded(model, tmp_path):
    """Without the weights' own bytes the answer is the same, but for what they take on disk."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    shutil.rmtree(folder / "params" / "embedding" / "c")
    assert {**describe(folder), "bytes": 0} == {**describe(model), "bytes": 0}


def test_exports(model, tmp_path):
    export_model(find(model), tmp_path / "both")
    export_model(find(model), tmp_path / "one", "llama")
    both, one = describe(tmp_path / "both"), describe(tmp_path / "one")
    assert both["what"] == "Hugging Face folder, both streams"
    assert one["what"] == "Hugging Face folder, left to right"
    assert both["parameters"] - one["parameters"] == find(model).config.width
    _history_is_told(both)
    assert "source" not in one
    raw = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True}))
    assert one["head"] == describe(tmp_path / "one")["head"] == "its own"
    (tmp_path / "one" / "config.json").write_text(json.dumps(raw | {"model_type": "gemma3"}))
    other = describe(tmp_path / "one")
    assert other["family"] == "gemma3"
    assert "'gemma3' is not supported" in other["not_importable"]
    assert other["parameters"] == one["parameters"]


@pytest.mark.long
def test_a_corpus_and_a_run_and_where_it_stands(model, tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"text number {i} " * 9)
    prepare([tmp_path], tmp_path / "data", Preparation("bytes", held_out=0.3, workers=1, include=("*.txt",)))
    corpus = describe(tmp_path / "data")
    assert corpus["what"] == "corpus folder"
    assert corpus["characters"] == 9 * 9 * 14
    config = Config(
        name="a run",
        run=str(tmp_path / "run"),
        source=str(model),
        data=DataConfig(str(tmp_path / "data"), length=32, batch=1),
        curriculum=(Stage(1), Stage(2, "random", 4)),
        adapt=AdaptConfig(rank=0),
    )
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, save_every=1, eval_every=9)))
    facts = describe(tmp_path / "run")
    assert (facts["what"], facts["experiment"], facts["step"]) == ("run folder", "a run", "3 of 3")
    assert (facts["curriculum_stage"], facts["saved_steps"]) == ("random_4, 2 of 2", "1, 2, 3")
    assert (facts["steps_trained"], facts["tokens_seen"]) == (10, 900 + 3 * 32)
    assert set(facts["nll"]) == {"ar", "in_order_4", "random_1", "random_4", "random_8"}
    assert re.match(r"(\w+ \d+\.\d\d%, )+\w+ \d+\.\d\d%$", facts["time"])
    assert {"training", "starting", "saving"} <= {part.split()[0] for part in facts["time"].split(", ")}
    assert re.match(r".*, step 3, .* s a step its own \(.* s x [123].*\)", facts["process_0"])
    early = describe(tmp_path / "run", step=1)
    assert (early["step"], early["curriculum_stage"], early["steps_trained"]) == ("1 of 3", "in_order_1, 1 of 2", 8)
    with pytest.raises(UserError, match="has no step 9; it has 1, 2, 3"):
        describe(tmp_path / "run", step=9)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert describe(tmp_path / "run")["step"] == "0 of 3, none saved yet"
    (tmp_path / "run" / "config.json").write_text(to_json(config)[:-9])
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        describe(tmp_path / "run")


def test_what_is_unknown(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model.gguf").write_text("hello")
    for name, message in [
        ("notes.txt", "notes.txt is none that we know"),
        ("model.gguf", "truncated or not a GGUF file"),
        ("", "is none that we know"),
        ("nowhere", "nowhere does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            describe(tmp_path / name)
