"""The whole road with every path in a bucket, against emulators, ends as it does in folders of this machine, bit for bit."""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import emulators
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from chosen import long_after
from model_folders import load_arrays
from test_loop import assert_same_run, stop_at
from typed import answer, fails

from a3jax.checkpoint.folder import find, saved_steps
from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.devices.passing import Passing
from a3jax.errors import UserError
from a3jax.experiment.combine import product
from a3jax.files.parts import PARTS
from a3jax.files.places import place, sizes
from a3jax.files.strict import to_json
from a3jax.sweep.schedule import run_sweep
from a3jax.sweep.status import status
from a3jax.sweep.trials import make_sweep, read_sweep
from a3jax.train.loop import train


@pytest.fixture(params=long_after(1, ["gs", "s3"]))
def emulator(request, tmp_path, monkeypatch):
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of(request.param) as started:
        started.root = f"{request.param}://bucket/{request.node.name.split('[')[0]}"
        yield started


def put(folder: Path, to: Path) -> None:
    """Copy a folder into a bucket, as a user does."""
    for name in sizes(folder):
        (to / name).write_bytes((folder / name).read_bytes())


def put_run(root: Path, corpus, config):
    """Copy a corpus into a bucket, under the name by which its epochs are called; the experiment of a run there."""
    put(corpus, root / corpus.name)
    return dataclasses.replace(config, run=f"{root}/run", data=dataclasses.replace(config.data, path=f"{root}/{corpus.name}"))


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


@pytest.mark.long
def test_a_run_that_is_stopped_and_goes_on_elsewhere(emulator, corpus, experiment, whole_run, monkeypatch, tmp_path):
    root = place(emulator.root)
    config = put_run(root, corpus, experiment())
    stop_at(5, monkeypatch)
    summary = train(config)
    assert (summary.steps, summary.stopped_by) == (5, signal.SIGTERM)
    monkeypatch.undo()
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "another machine"))
    assert train(config).steps == 8
    assert_same_run(f"{root}/run", str(whole_run))
    assert saved_steps(root / "run")[-2:] == saved_steps(whole_run)[-2:] == [6, 8]
    assert not (root / "run" / "lock").exists()
    assert list((root / "run").glob("events/events*"))
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match="holds a run with seed = 0, not 1"):
        train(other)


@pytest.mark.long
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


def start(config, tmp_path, scratch: str, *options: str, program: str | None = None):
    """Train in a process of its own, which has no other part of this one's machine than the bucket."""
    file = tmp_path / f"{scratch}.json"
    file.write_text(to_json(config))
    environment = {
        **os.environ,
        "A3JAX_SCRATCH": str(tmp_path / scratch),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, *(["-c", program] if program else ["-m", "a3jax.cli"]), "train", str(file), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def side_by_side(count: int) -> list[list[str]]:
    """The options of each of several processes that are to be one run."""
    if count == 1:
        return [[]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--processes", str(count), "--process"]
    return [[*together, str(i)] for i in range(count)]


@pytest.mark.long
def test_kills_at_ten_moments_and_two_writers(emulator, corpus, experiment, whole_run, tmp_path):
    """Uploads are among the moments: a step is saved after each one, and the kills come as soon as one is begun."""
    root = place(emulator.root)
    config = put_run(root, corpus, experiment(save_every=1))
    moments = random.Random(0)
    for kill in range(10):
        process = start(config, tmp_path, f"machine-{kill % 2}")
        before = set(sizes(root / "run" / "checkpoints"))
        while process.poll() is None and set(sizes(root / "run" / "checkpoints")) <= before:
            time.sleep(0.02)
        if kill == 0 and process.poll() is None:
            second = start(config, tmp_path, "third")
            assert second.wait(120) == 2
            assert "is being trained by another process" in second.stderr.read()
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
    train(config)
    assert_same_weights(place(config.run), whole_run)


@pytest.mark.long
@pytest.mark.parametrize("status", [429, 503, 0])
def test_a_run_whose_bucket_fails_for_ten_seconds(emulator, status, corpus, experiment, whole_run):
    config = put_run(place(f"{emulator.root}-{status}"), corpus, experiment())
    until: list[float] = []

    def trouble(method, path):
        if not until and "checkpoints" in path and method in ("POST", "PUT"):
            until.append(time.monotonic() + 10)
        return status if until and time.monotonic() < until[0] else None

    emulator.trouble = trouble
    try:
        assert train(config).steps == 8
    finally:
        emulator.trouble = emulators.none
    assert until
    assert_same_run(config.run, str(whole_run))


IMPATIENT = """
import sys
from orbax.checkpoint._src.serialization import tensorstore_utils
from a3jax.cli import main
for context in tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT:
    context["gcs_request_retries"] = {"max_retries": 4}
main(sys.argv[1:])
"""
"""The command, whose checkpoints are not tried for a quarter of an hour."""


OUTAGES = [("gs", {503: 1, 429: 1, 0: 1}), ("gs", {503: 2}), ("s3", {503: 1, 0: 1})]
"""A bucket, and with what status it begins to answer runs of how many processes."""


@pytest.mark.long
@pytest.mark.parametrize(("scheme", "runs"), OUTAGES, ids=["gs", "two processes", "s3"])
def test_outages_that_begin_in_the_midst_of_a_run_and_do_not_end(scheme, runs, corpus, experiment, whole_run, tmp_path):
    """From the first write of its second checkpoint on, every request of a run fails, until its processes have ended."""
    begun = set()

    def trouble(method, path):
        status = next((status for status in runs if f"outage-{sum(runs.values())}-{status}" in path), None)
        if method in ("POST", "PUT") and "checkpoints/6" in unquote(path):
            begun.add(status)
        return status if status in begun else None

    with emulators.of(scheme) as emulator:
        configs = {
            status: put_run(place(f"{scheme}://bucket/outage-{sum(runs.values())}-{status}"), corpus, experiment())
            for status in runs
        }

        def started(when: str, configs=configs, program: str | None = None) -> dict:
            return {
                status: [
                    start(config, tmp_path, f"{status} {i} {when}", *options, program=program)
                    for i, options in enumerate(side_by_side(runs[status]))
                ]
                for status, config in configs.items()
            }

        emulator.trouble = trouble
        processes = started("before", program=IMPATIENT)
        try:
            said = {status: [process.communicate(timeout=400)[1] for process in them] for status, them in processes.items()}
        finally:
            emulator.trouble = emulators.none
            for process in itertools.chain(*processes.values()):
                process.kill()
        assert begun == set(runs)
        for status, texts in said.items():
            assert [process.returncode for process in processes[status]] == [75] * runs[status], texts
            assert "Traceback" not in "".join(texts)
            ends = [text.splitlines()[-1] for text in texts]
            assert all(end.startswith("a3jax: ") for end in ends)
            whole = [end.endswith("the last whole checkpoint is step 3: run the same command again") for end in ends]
            lost = [bool(re.match(r"a3jax: host .* was lost at step \d", end)) for end in ends]  # by one that went on
            assert any(whole), ends
            assert all(np.logical_or(whole, lost)), ends
            assert saved_steps(configs[status].run_folder) == [3]
        here = {  # several processes do not make what one makes to the last bit
            status: dataclasses.replace(experiment(), run=str(tmp_path / f"run-{status}"))
            for status, count in runs.items()
            if count > 1
        }
        for status, them in [*started("again").items(), *started("here", here).items()]:
            assert [process.wait(300) for process in them] == [0] * runs[status]
        for status, config in configs.items():
            if status in here:
                assert_same_weights(config.run_folder, here[status].run_folder)
            else:
                assert_same_run(config.run, str(whole_run))


@pytest.mark.long
def test_a_sweep(emulator, corpus, experiment, tmp_path, capsys):
    """Of two trials one fails, for its windows are too long; the other is what the same trial is here."""
    root = place(emulator.root)
    put(corpus, root / corpus.name)
    base = experiment()
    trials = product({"seed": [1], "data.length": [32, 100]})
    for folder, data in ((root / "sweep", root / corpus.name), (tmp_path / "sweep", corpus)):
        config = dataclasses.replace(base, data=dataclasses.replace(base.data, path=str(data)), run=None)
        assert run_sweep(make_sweep(config, trials, folder), folder, 1) == 0
    ends = [
        [(one.name, one.state, one.step) for one in status(f, read_sweep(f))] for f in (root / "sweep", tmp_path / "sweep")
    ]
    assert ends[0] == ends[1]
    assert {state for _, state, _ in ends[0]} == {"done", "failed"}
    (done,) = (name for name, state, _ in ends[0] if state == "done")
    assert_same_weights(root / "sweep" / "runs" / done, tmp_path / "sweep" / "runs" / done)
    (failed,) = (name for name, state, _ in ends[0] if state == "failed")
    assert "data.length 100" in (root / "sweep" / "failed" / failed / "log.txt").read_text()


@pytest.mark.long
def test_two_processes_that_are_killed_and_go_on(corpus, experiment, tmp_path):
    with emulators.of("gs"):
        root = place("gs://bucket/two")
        put(corpus, root / corpus.name)
        runs = []
        for folder, data, kill in ((root / "run", root / corpus.name, True), (tmp_path / "run", corpus, False)):
            base = experiment(save_every=2)
            config = dataclasses.replace(base, run=str(folder), data=dataclasses.replace(base.data, path=str(data)))
            for killed in (True, False) if kill else (False,):
                both = [start(config, tmp_path, f"host{i}", *options) for i, options in enumerate(side_by_side(2))]
                while killed and not saved_steps(folder):
                    assert [process.poll() for process in both] == [None, None]
                    time.sleep(0.1)
                for process in both if killed else ():
                    process.kill()
                ends = [process.wait(200) for process in both]
                assert killed or ends == [0, 0], [process.stderr.read() for process in both]
            runs.append(folder)
        assert_same_weights(*runs)


@pytest.mark.long
def test_a_save_that_the_bucket_never_takes_may_pass(corpus, experiment, tmp_path, monkeypatch):
    """What Orbax raises then is an error of the library that it writes by, which no disk raises."""
    from gcsfs.retry import HttpError

    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))

    def never(*_, **__):
        raise HttpError({"code": 503, "message": "Service Unavailable"})

    with emulators.of("gs"):
        config = dataclasses.replace(experiment(), run="gs://bucket/never/run")
        monkeypatch.setattr(ocp.CheckpointManager, "save", never)
        with pytest.raises(Passing, match=r"could not be written \(.*Service Unavailable.*\); none was saved before"):
            train(config)
        monkeypatch.undo()
        monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of("gs"):
        assert train(config).steps == 8
