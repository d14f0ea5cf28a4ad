"""The whole road with every path in a bucket, against emulators, ends as it does in folders of this machine, bit for bit."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")

import emulators
import jax
from test_loop import assert_same_run, stop_at
from typed import answer, fails

from a3jax.checkpoint.folder import find, load_arrays, saved_steps
from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.files.folders import PARTS
from a3jax.files.places import place, sizes
from a3jax.train.loop import train


@pytest.fixture(params=["gs", "s3"])
def emulator(request, tmp_path, monkeypatch):
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of(request.param) as started:
        started.root = f"{request.param}://bucket/{request.node.name.split('[')[0]}"
        yield started


def put(folder: Path, to: Path) -> None:
    """Copy a folder into a bucket, as a user does."""
    for name in sizes(folder):
        (to / name).write_bytes((folder / name).read_bytes())


def assert_same_weights(a: Path, b: Path) -> None:
    for x, y in zip(*(jax.tree.leaves(load_arrays(find(path))) for path in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_corpus(emulator, corpus):
    root = place(emulator.root)
    put(corpus.parent, root / "texts")
    texts = {name for name in sizes(root / "texts") if "/" in name}
    for name in texts:
        (root / "texts" / name).unlink()
    made = prepare([f"{root}/texts"], root / "corpus", Preparation("bytes", held_out=0.2, workers=1))
    here = read_manifest(corpus)
    assert (
        dataclasses.replace(made, sources=here.sources, settings=here.settings)
        == here
        == dataclasses.replace(read_manifest(root / "corpus"), sources=here.sources, settings=here.settings)
    )
    for split in ("train", "held_out"):
        streams = TokenStream(corpus, here, split), TokenStream(root / "corpus", made, split)
        begin, end = np.array([0, 7]), np.array([len(streams[0]), 90])
        for a, b in zip(*(stream.read(begin, end) for stream in streams), strict=True):
            np.testing.assert_array_equal(a, b)
    shard = root / "corpus" / made.train.shards[0].name
    content = shard.read_bytes()
    shard.write_bytes(bytes(len(content)))
    stream = TokenStream(root / "corpus", made, "train")
    with pytest.raises(UserError, match=rf"{shard} is damaged"):
        stream.read(np.array([0]), np.array([5]))
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{shard.name} is damaged \({len(content) - 1:,} bytes"):
        read_manifest(root / "corpus")


def test_a_run_that_is_stopped_and_goes_on_elsewhere(emulator, corpus, experiment, whole_run, monkeypatch, tmp_path):
    root = place(emulator.root)
    put(corpus, root / "corpus")
    config = dataclasses.replace(experiment(), run=f"{root}/run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=f"{root}/corpus"))
    stop_at(5, monkeypatch)
    summary = train(config)
    assert (summary.steps, summary.stopped_by) == (5, signal.SIGTERM)
    monkeypatch.undo()
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "another machine"))
    assert train(config).steps == 8
    assert_same_run(f"{root}/run", str(whole_run))
    assert saved_steps(root / "run") == saved_steps(whole_run)
    assert not (root / "run" / "lock").exists()
    assert list((root / "run").glob("events/events*"))
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match="holds a run with seed = 0, not 1"):
        train(other)


def test_every_command(emulator, corpus, whole_run, capsys, tmp_path):
    root = emulator.root
    put(whole_run, place(f"{root}/run"))
    for name in saved_steps(whole_run):
        (place(f"{root}/run/checkpoints/{name}") / PARTS).write_text('{"parts": {}}')
    assert answer(capsys, "inspect", f"{root}/run")["step"] == answer(capsys, "inspect", whole_run)["step"]
    answer(capsys, "export", f"{root}/run", f"{root}/exported")
    answer(capsys, "import", f"{root}/exported", f"{root}/model")
    assert_same_weights(whole_run, place(f"{root}/model"))
    assert answer(capsys, "inspect", f"{root}/model")["what"] == "model folder"
    text = ["--text", str(corpus.parent / "1.txt"), "--tasks", "likelihood", "--orders", "ar", "random_4"]
    figures = []
    for path, out in ((whole_run, tmp_path / "results"), (f"{root}/run", f"{root}/results")):
        answer(capsys, "evaluate", path, *text, "--out", out)
        figures.append(json.loads((place(out) / "results.json").read_text())["tasks"]["likelihood"]["tables"])
        assert sizes(place(out)).keys() >= {"results.json", "likelihood.jsonl", "report.html"}
    assert figures[0] == figures[1]
    assert "exists already" in fails(capsys, "export", f"{root}/run", f"{root}/exported")
    assert "does not exist" in fails(capsys, "inspect", f"{root}/nothing")
    assert "no such bucket" in fails(capsys, "export", f"{root}/run", f"{root[:5]}no-such-bucket/exported")
