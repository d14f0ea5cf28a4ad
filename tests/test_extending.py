"""What docs/extending.md shows is what it takes: its diffs are applied to a copy of the package, and do what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRY = """
import json, sys
import jax, numpy as np, transformers
import a3jax
from model_folders import save_model
from a3jax.checkpoint.provenance import Provenance
from a3jax.cli import main
from a3jax.config import ModelConfig
from a3jax.curriculum.stage import parse_order
from a3jax.data.tokenizer import byte_codec
from a3jax.model.two_stream import TwoStream
from a3jax.ordering import draw_groups
from a3jax.weights.configuration import from_hf, to_hf
from flax import nnx

family, size = parse_order("outside_in_1")
groups = np.asarray(draw_groups(jax.random.key(0), np.ones(9, int), np.arange(9) == 0, family, size))
assert np.argsort(groups).tolist() == [0, 1, 8, 2, 7, 3, 6, 4, 5]

theirs = transformers.CwmConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
ours = from_hf(json.loads(theirs.to_json_string()), "config.json")
assert (ours.family, ours.head_width, ours.local_window, ours.local_layers[:4]) == ("cwm", 8, 8192, (1, 2, 3, 5))
assert to_hf(ours, "float32")["architectures"] == ["CwmForCausalLM"]

heads = {"query_heads": 4, "kv_heads": 2, "head_width": 8}
config = ModelConfig("llama", 258, 16, 24, 2, context=64, start_token=256, end_tokens=(257,), **heads)
params = nnx.to_pure_dict(nnx.split(TwoStream(config, nnx.Rngs(0)), nnx.Param)[1])
from pathlib import Path
save_model(Path("model"), config, jax.tree.map(np.asarray, params), Provenance("random"), byte_codec().files)
filled = a3jax.infill(a3jax.load("model"), "ab[[7]]cd", mode="paced", commit=2)
assert sorted(filter(None, filled.passes)) == [1, 1, 2, 2, 3, 3, 4]

Path("text.txt").write_text("one two three")
main(["evaluate", "model", "--tasks", "endings", "--text", "text.txt", "--json"])
"""


@pytest.mark.long
def test_the_diffs_of_the_page_do_what_it_says(tmp_path):
    page = (ROOT / "docs/extending.md").read_text()
    diffs = re.findall(r"^```diff\n(.*?)^```", page, re.S | re.M)
    assert len(diffs) == 4
    shutil.copytree(ROOT / "a3jax", tmp_path / "a3jax", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in diffs:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    helpers = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([sys.executable, "-c", TRY], cwd=tmp_path, env=helpers, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"right"' in done.stdout.splitlines()[-1]
