"""Published weights straight onto a mesh: what an import and a load give, of which each process reads its own part."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays
from safetensors.numpy import load_file
from test_import import BAD

from a3jax.checkpoint import arrays as parameter_files
from a3jax.checkpoint.folder import find, load_params
from a3jax.config import Config, DataConfig, Stage, TrainConfig
from a3jax.errors import UserError
from a3jax.train.loop import train
from a3jax.weights import hub
from a3jax.weights.importer import import_model
from a3jax.weights.pretrained import pretrained as opened
from a3jax.weights.source import open_source
from a3jax.weights.table import entries

PROCESS = Path(__file__).with_name("sharded_process.py")


def start(devices: int, out: Path, *args: object) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROCESS), str(out), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen, out: Path) -> dict:
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.read_text())


def two_processes(tmp_path: Path, what: str, *args: object) -> list[dict]:
    """What each of two processes on this machine says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{number}.json" for number in range(2)]
    started = [start(4, out, what, number, port, *args) for number, out in enumerate(outs)]
    return [result(process, out) for process, out in zip(started, outs)]


@pytest.mark.long
def test_over_any_mesh_the_parameters_are_those_of_an_import_bit_for_bit(pretrained, imported, tmp_path):
    cases = [("llama", "float32", "float32"), ("qwen2", "bfloat16", "float32"), ("qwen3", "float32", "float32"),
             ("olmo2", "float32", "bfloat16")]  # fmt: skip
    args = [(pretrained(case, dtype), imported(case, dtype).folder, load_as) for case, dtype, load_as in cases]
    out = tmp_path / "differ.json"
    differ = result(start(8, out, "compare", *itertools.chain(*args)), out)
    assert len(differ) == 3 * len(cases)
    assert {key: wrong for key, wrong in differ.items() if wrong} == {}


@pytest.mark.long
def test_over_any_mesh_a_model_in_int8_says_what_it_says_on_one_device(imported, tmp_path):
    out = tmp_path / "said.json"
    said = result(start(8, out, "rounded", imported("qwen2").folder), out)
    alone = said.pop("alone")
    for name, one in said.items():
        np.testing.assert_allclose(one["log_probs"], alone["log_probs"], atol=1e-5, err_msg=name)
        assert one["text"] == alone["text"], name


@pytest.mark.parametrize("case", ["llama3", "mistral"])
def test_on_one_device_too(case, pretrained, imported):
    found, expected = opened(pretrained(case)).load(), load_params(imported(case))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.long
def test_each_process_copies_its_own_part_and_no_other(pretrained, imported, tmp_path):
    """Half of what is split over the devices of two processes, once, and of the embedding again for the query seed."""
    tensors = load_file(pretrained("qwen2") / "model.safetensors")
    expected = {name: x.nbytes if name.endswith("bias") else x.nbytes // 2 for name, x in tensors.items()}
    expected["model.embed_tokens.weight"] *= 2
    for process in two_processes(tmp_path, "share", pretrained("qwen2"), imported("qwen2").folder):
        assert process["wrong"] == []
        assert process["read"] == expected


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="memory and reads are told by /proc, which is not here")
def test_memory_is_that_of_the_shards_and_a_part_of_one_tensor(large, pretrained, tmp_path, monkeypatch):
    """And of a model folder in chunks of 128 KiB, a process does not read those that hold nothing of its own."""
    monkeypatch.setattr(parameter_files, "CHUNK_BYTES", 2**17)
    import_model(open_source(large), tmp_path / "model")
    total, largest, slack = sum(file.stat().st_size for file in large.glob("*.safetensors")), 4 * 512 * 2048, 8e6
    for process in two_processes(tmp_path, "memory", large, tmp_path / "model", pretrained("llama")):
        assert process["kept"] == pytest.approx(total / 2, rel=0.01)
        assert process["kept"] < process["grown"] < total / 2 + largest + slack
        # Chunks are cut along two axes only: halves of query, key, value, gate and up, but all of output and down.
        assert process["read"] < 10.5 / 16 * total + 3 * slack


def test_only_the_first_of_merged_axes_can_be_cut(tiny):
    query = next(entry for entry in entries(tiny()) if entry.ours == "blocks.query")
    assert query.their_index((slice(4, 8), slice(1, 3), slice(None)), (32, 4, 8)) == (slice(8, 24), slice(4, 8))
    with pytest.raises(ValueError, match="not one stretch"):
        query.their_index((slice(None), slice(None), slice(0, 4)), (32, 4, 8))


@pytest.mark.parametrize("name", [name for name in BAD if name != "no config"])  # such a folder is no model at all
def test_what_an_import_refuses_is_refused_in_the_same_words(name, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = BAD[name]
    folder = Path(shutil.copytree(pretrained("llama"), tmp_path / "source"))
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        opened(folder).load()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_names_that_stand_for_models(pretrained, imported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda model: pretrained("llama") if model == ("owner/model", "v1") else None)
    assert opened("owner/model@v1").record.source == "owner/model@v1"
    assert opened(imported("llama").folder).config == opened(pretrained("llama")).config
    Path("models").mkdir()
    for name, step, message in [
        ("models/mine", None, "models/mine does not exist; give a folder"),
        ("nowhere", None, "nowhere does not exist; give a folder"),
        ("models", None, "models has no model.json; give a folder"),
        (pretrained("llama"), 3, "has no steps, and so no step 3"),
    ]:
        with pytest.raises(UserError, match=message):
            opened(name, step)


@pytest.mark.long
def test_training_from_a_published_folder_is_training_from_its_import(pretrained, imported, tmp_path):
    """Texts included, which are tokenized as the model's own."""
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text number {i} " * 9)
    runs = {}
    for name, source in [("direct", pretrained("llama")), ("imported", imported("llama").folder)]:
        data = DataConfig(str(tmp_path / "texts"), length=32, batch=4)
        settings = TrainConfig("float32", remat="none", eval_windows=1)
        run = str(tmp_path / name)
        train(Config(name, str(source), run=run, data=data, curriculum=(Stage(2, "random", 4),), train=settings))
        runs[name] = find(tmp_path / name)
    assert runs["direct"].config == runs["imported"].config
    assert runs["direct"].record == runs["imported"].record
    assert runs["direct"].record.source == pretrained("llama").name
    jax.tree.map(np.testing.assert_array_equal, load_arrays(runs["direct"]), load_arrays(runs["imported"]))
