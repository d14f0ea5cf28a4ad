"""The exported twin fills blanks token for token as a3jax does, and needs nothing of JAX to do it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chosen import long_after
from small_models import CASES, load, query_logits, random_groups

import a3jax
from a3jax.decode.cached import plan
from a3jax.decode.loop import decode
from a3jax.decode.settings import Decoding
from a3jax.export.exporter import export_model

PIECES = ([5, 6, 2, 3, 1, 9, 3, 5], [7, 4, 3, 12])
"""Lengths of given text and of blanks in turn, one list per row: rows differ in length and in how much they give."""


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    """The model of a case here, and its two-stream folder."""
    made: dict[str, tuple[a3jax.Model, Path]] = {}

    def make(case: str) -> tuple[a3jax.Model, Path]:
        if case not in made:
            folder = tmp_path_factory.mktemp("greedy") / case
            export_model(imported(case), folder)
            made[case] = a3jax.load(imported(case).folder), folder
        return made[case]

    return make


def _fill_here(model: a3jax.Model, order: str) -> dict[str, np.ndarray]:
    """Rows as a3jax fills them greedily, and what the twin needs to do the same: all B x T, padded on the right."""
    draw = np.random.default_rng(2)
    given = [np.repeat(np.arange(len(n)) % 2 == 0, n) for n in PIECES]
    tokens = [np.where(row, draw.integers(0, 256, len(row)), 0) for row in given]
    decodings = [Decoding(order=order, seed=seed) for seed in (4, 5)]
    drawn = plan(decodings, tokens, given, model.config, model.fillable[None])
    filled = decode(model.network, drawn, decodings[0])
    T = max(map(len, tokens))

    def pad(rows):
        return np.stack([np.pad(row, (0, T - len(row))) for row in rows])

    return {
        "input_ids": pad(tokens),
        "blank_mask": pad([~row for row in given]),
        "attention_mask": pad([np.ones(len(row), int) for row in given]),
        "rank": np.argsort(drawn.order.token_index, axis=1)[:, :T],  # a token's slot
        "filled": filled.tokens_BxL[:, :T],
    }


def _fill_in_torch(model, rows: dict[str, np.ndarray], size: int, order: str | None) -> np.ndarray:
    given = {name: torch.from_numpy(rows[name]) for name in ("input_ids", "blank_mask", "attention_mask")}
    return model.infill(**given, group_size=size, order=order or torch.from_numpy(rows["rank"])).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("case", long_after(1, dict.fromkeys(["llama", "gemma2", *CASES])))
def test_infilling_equals_ours(case, exported):
    ours, folder = exported(case)
    twin = load(folder)
    for size in (1, 3, 4):
        for order, theirs in [(f"in_order_{size}", "in_order"), (f"random_{size}", None)]:
            rows = _fill_here(ours, order)
            np.testing.assert_array_equal(_fill_in_torch(twin, rows, size, theirs), rows["filled"])
            assert (rows["filled"][rows["blank_mask"]] < 256).all()


def test_what_may_fill_a_blank_travels_with_the_folder(exported):
    _, folder = exported("llama")
    assert json.loads((folder / "config.json").read_text())["unfillable"] == [[256, 299]]
    twin, blank = load(folder), torch.ones(1, 12, dtype=torch.bool)
    blank[0, :2] = False
    rows = torch.arange(12)[None]
    with torch.no_grad():
        twin.model.embed_tokens.weight[256:] *= 3  # so that they would be chosen
        twin.lm_head.weight[256:] *= 9
    assert (twin.infill(rows, blank)[blank] < 256).all()
    assert (twin.infill(rows, blank, fillable=torch.ones(300, dtype=torch.bool))[blank] >= 256).any()
    assert (twin.generate(rows, max_new_tokens=12)[:, 12:] >= 256).any()


_WITHOUT_JAX = """
import sys
for name in ("jax", "jaxlib", "flax", "orbax", "optax", "a3jax"):
    sys.modules[name] = None
import numpy, torch, transformers
folder, inputs, out = sys.argv[1:]
rows = {name: torch.from_numpy(value) for name, value in numpy.load(inputs).items()}
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
with torch.no_grad():
    logits = model(rows["filled"], groups=rows["groups"]).logits
given = {name: rows[name] for name in ("input_ids", "blank_mask", "attention_mask")}
numpy.savez(out, logits=logits, filled=model.infill(**given, group_size=4, order=rows["rank"]))
"""


@pytest.mark.long
def test_the_folder_needs_no_jax(exported, imported, tmp_path):
    ours, folder = exported("qwen3")
    rows = _fill_here(ours, "random_4")
    rows["groups"] = random_groups(3, 4, rows["filled"].shape[1])
    np.savez(tmp_path / "in.npz", **rows)
    command = [sys.executable, "-c", _WITHOUT_JAX, str(folder), "in.npz", "out.npz"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npz")
    expected = query_logits(imported("qwen3"), rows["filled"], rows["groups"])
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(found["filled"], rows["filled"])
