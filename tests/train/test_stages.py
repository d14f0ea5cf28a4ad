"""A run through everything that a curriculum can be: resumed bit for bit, and compiled once a stage."""

import dataclasses
import logging
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays

from a3jax.checkpoint.folder import find
from a3jax.config import DataConfig, Stage
from a3jax.curriculum.stage import Part, Plateau
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.errors import UserError
from a3jax.show.describe import describe
from a3jax.train import compiled
from a3jax.train.loop import train
from a3jax.train.metrics import read
from a3jax.train.report import Report

MIXTURE = (Part(1.0, "right_to_left", 2, sizes="uniform"), Part(2.0, "random", 3, prefix=0.5, sizes="geometric"))
STAGES = (
    Stage(2),
    Stage(0, "spans", 4),
    Stage(5, "random", 4, ramp=3, lr_factor=0.5, batch=2),
    Stage(tokens=500, mixture=MIXTURE, ramp=2),
)
LENGTHS, BATCHES = (2, 5, 4), (4, 2, 4)  # 500 tokens in steps of 4 x 32


def at_step(monkeypatch, act):
    original = Report.step

    def step(self, number, stage, metrics):
        original(self, number, stage, metrics)
        act(number)

    monkeypatch.setattr(Report, "step", step)


def stop_at(when, monkeypatch):
    at_step(monkeypatch, lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == when else None)


def losses(run):
    return [(row["step"], row["stage"], row["loss"]) for row in read(Path(run)) if "loss" in row]


def assert_same_run(a, b):
    assert losses(a) == losses(b)
    for x, y in zip(*(jax.tree.leaves(load_arrays(find(Path(run)))) for run in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_of_every_kind_of_stage_compiles_each_once_and_resumes_bit_for_bit(experiment, monkeypatch, caplog):
    config = dataclasses.replace(experiment("whole", eval_every=100, save_every=100), curriculum=STAGES, ar_share=0.2)
    steps, others = [], {}
    original = compiled.compile_step
    monkeypatch.setattr(compiled, "compile_step", lambda *arguments: steps.append(arguments[2]) or original(*arguments))
    with jax.log_compiles(), caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        at_step(patch, lambda number: others.update({number: sum("Finished XLA" in r.message for r in caplog.records)}))
        assert train(config).steps == sum(LENGTHS)
    assert len(steps) == 3
    assert others[4] == others[7], "weights of a ramp are data"
    assert others[9] == others[11]
    rows = [row for row in read(config.run_folder) if "loss" in row]
    names = ["in_order_1", "random_4+in_order_1", "right_to_left_1_to_2+random_about_3+in_order_1"]
    assert [row["stage"] for row in rows] == np.repeat(names, LENGTHS).tolist()
    factor = np.repeat([1, 0.5, 1], LENGTHS)
    plain = [min(1, (step + 1) / 2) * 1e-2 for step in range(9)]  # warm-up of 2; the last fifth of 11 falls
    np.testing.assert_allclose([row["learning_rate"] for row in rows][:9], factor[:9] * plain, rtol=1e-6)
    assert all(row["predicted"] <= batch * 31 for row, batch in zip(rows, np.repeat(BATCHES, LENGTHS)))
    record = find(config.run_folder).record
    batches = Batches(open_corpora(config.data), config.data, sum(LENGTHS), config.seed, None, np.repeat(BATCHES, LENGTHS))
    without_padding = sum(int((batches[step]["segments"] > 0).sum()) for step in range(sum(LENGTHS)))
    assert record.tokens == without_padding < np.dot(LENGTHS, BATCHES) * 32
    assert record.stages == tuple(names)
    for when in (4, 8):  # inside both ramps
        stopped = dataclasses.replace(config, run=str(config.run_folder.with_name(f"stopped{when}")))
        with monkeypatch.context() as patch:
            stop_at(when, patch)
            assert train(stopped).steps == when
        train(stopped)
        assert_same_run(stopped.run, config.run)
        assert find(stopped.run_folder).record == record


@pytest.mark.long
def test_a_stage_ends_on_a_plateau_and_a_resumed_run_ends_it_at_the_same_step(experiment, monkeypatch):
    settings = experiment("whole", eval_every=2, save_every=1)
    rule = Plateau("random_4", delta=10.0, evaluations=1)  # nothing improves by so much
    stages = (Stage(1), dataclasses.replace(Stage(40, "random", 4), plateau=rule), Stage(3, "in_order", 2))
    optimizer = dataclasses.replace(settings.optimizer, decay=3 / 44)
    config = dataclasses.replace(settings, curriculum=stages, optimizer=optimizer)
    assert train(config).steps == 7, "evaluated at 2 and 4, ended there"
    rows = [row for row in read(config.run_folder) if "loss" in row]
    assert [row["stage"] for row in rows] == ["in_order_1", *["random_4"] * 3, *["in_order_2"] * 3]
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates[3:], 1e-2 * np.array([1, 1, 0.7, 0.4]), rtol=1e-5)  # the end of the schedule is kept
    assert describe(config.run_folder)["curriculum_stage"] == "in_order_2, 3 of 3"
    for when in (3, 5):
        stopped = dataclasses.replace(config, run=str(config.run_folder.with_name(f"stopped{when}")))
        with monkeypatch.context() as patch:
            stop_at(when, patch)
            assert train(stopped).steps == when
        assert train(stopped).steps == 7
        assert_same_run(stopped.run, config.run)
    paused = dataclasses.replace(config, run=str(config.run_folder.with_name("paused")))
    for stop in (3, 7):  # an evaluation that comes of stopping is none of the plateau's
        assert train(dataclasses.replace(paused, train=dataclasses.replace(paused.train, stop_at=stop))).steps == stop
    assert_same_run(paused.run, config.run)
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=3))
    with pytest.raises(UserError, match=r"train.eval_every = 2, not 3"):
        train(changed)
    newest = config.run_folder / "checkpoints" / "7"
    shutil.rmtree(newest / "standing")
    assert train(config).steps == 7
    assert (newest.parent / "damaged" / "7").is_dir(), "a checkpoint that has lost a part is damaged"


@pytest.mark.long
def test_the_authors_way_of_training_resumes_bit_for_bit_at_a_stage_and_inside_it(experiment, monkeypatch):
    """Documents cut and not packed, a query seed from N(0, 1), an optimizer and a linear decay for every stage."""
    settings = experiment("whole", eval_every=100, save_every=100)
    config = dataclasses.replace(
        settings,
        seeding="learned",
        data=dataclasses.replace(settings.data, packing="truncate"),
        adapt=dataclasses.replace(settings.adapt, query_seed="normal"),
        optimizer=dataclasses.replace(settings.optimizer, schedule="linear", final_lr=0.0, b2=0.999, per_stage=True),
    )
    assert train(config).steps == 8
    rates = [row["learning_rate"] for row in read(config.run_folder) if "loss" in row]
    np.testing.assert_allclose(rates, 1e-2 * np.array([1 / 2, 1, 1, 1 / 2, 1, 1, 2 / 3, 1 / 3]), rtol=1e-5)
    for when in (3, 5):
        stopped = dataclasses.replace(config, run=str(config.run_folder.with_name(f"stopped{when}")))
        with monkeypatch.context() as patch:
            stop_at(when, patch)
            assert train(stopped).steps == when
        train(stopped)
        assert_same_run(stopped.run, config.run)


def test_a_plateau_needs_something_held_out(experiment, tmp_path):
    from a3jax.data.preparation import Preparation
    from a3jax.data.prepare import prepare

    (tmp_path / "text.txt").write_text("one two three " * 20)
    prepare([tmp_path / "text.txt"], tmp_path / "corpus", Preparation("bytes", held_out=0.0, workers=1))
    config = experiment()
    stages = (Stage(4, plateau=Plateau()),)
    config = dataclasses.replace(config, data=DataConfig(str(tmp_path / "corpus"), 32, 4), curriculum=stages)
    with pytest.raises(UserError, match=r"a stage has a plateau, but nothing of .*corpus is held out"):
        train(config)
