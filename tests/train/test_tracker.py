"""Weights & Biases without a network: what is written for it, and that a run never needs it."""

import dataclasses
import importlib.util
import json
import struct
import sys

import pytest

from a3jax.errors import UserError
from a3jax.train.loop import train
from a3jax.train.tracker import Tracker

installed = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (extra wandb)")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home"))


def records(file):
    """What an offline run holds: records of Protocol Buffers in LevelDB's log format, in blocks of 32 KiB."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def shown(folder):
    """The names under which `folder` was written for Weights & Biases, and all that it was shown, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    names, history = set(), []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        for record in map(Record.FromString, records(file)):
            if record.run.run_id:
                names.add((record.run.project, record.run.display_name, record.run.run_id))
            if record.history.item:
                items = {item.nested_key[0] if item.nested_key else item.key: item for item in record.history.item}
                history.append(
                    {name: json.loads(item.value_json) for name, item in items.items() if not name.startswith("_")}
                )
    return names, history


@installed
@pytest.mark.slow
def test_what_a_run_and_its_resumption_log_is_shown_as_one_run(experiment):
    config = experiment(wandb="any-order", stop_at=4)
    train(config)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=None)))
    names, history = shown(config.run_folder)
    ((project, name, _),) = names
    assert (project, name) == ("any-order", "test")
    logged = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: value for key, value in line.items() if isinstance(value, int | float)} for line in logged]
    assert history == numbers
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 9))


def test_without_wandb_it_is_one_line_and_nothing_is_imported_unasked(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import fails
    Tracker(experiment())
    with pytest.raises(UserError, match=r"^train\.wandb is mine, but wandb is not installed; pip install 'a3jax\[wandb\]'$"):
        Tracker(experiment(wandb="mine"))


@installed
def test_a_user_it_does_not_know_is_told_before_the_first_step(experiment, monkeypatch):
    import wandb

    def unknown(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "init", unknown)
    config = experiment(wandb="mine")
    config.run_folder.mkdir()
    with pytest.raises(UserError, match=r"^train\.wandb: No API key configured\. .*; or set WANDB_MODE=offline$"):
        Tracker(config)


@installed
def test_what_fails_later_is_said_once_and_the_run_goes_on(experiment, monkeypatch, capsys):
    import wandb

    class Broken:
        def define_metric(self, *_, **__): ...

        def log(self, values):
            raise wandb.errors.CommError("the connection broke")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    config = experiment(wandb="mine")
    config.run_folder.mkdir()
    tracker = Tracker(config)
    tracker.write(step=1, loss=2.0)
    tracker.write(step=2, loss=2.0)
    tracker.close()
    said = "a3jax: Weights & Biases is shown nothing more (the connection broke); the run does not need it, and goes on\n"
    assert capsys.readouterr().err == said
