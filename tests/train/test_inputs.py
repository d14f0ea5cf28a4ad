"""What a run reads at every start must be what it began with: its corpora, its teacher, and the source of its source."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import find, saved_steps
from a3jax.config import AdaptConfig, Config, Stage
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.train.inputs import INPUTS
from a3jax.train.loop import train
from a3jax.train.metrics import read


def losses(run: str | Path) -> list[float]:
    return [row["loss"] for row in read(Path(run)) if "loss" in row]


def learning_from(config: Config, source: Path, rank: int, distill: float) -> Config:
    """Six steps of an adaptation."""
    adapt, stages = AdaptConfig(rank=rank, distill=distill), (Stage(6, "random", 4),)
    return dataclasses.replace(config, source=str(source), model=None, adapt=adapt, curriculum=stages)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_learns_from_the_step_of_its_teacher_that_it_began_with(rank, experiment):
    teacher = experiment("teacher", save_every=2)
    train(dataclasses.replace(teacher, train=dataclasses.replace(teacher.train, stop_at=4)))
    whole, stopped = (learning_from(experiment(name, eval_every=100), teacher.run_folder, rank, 0.9) for name in "ab")
    train(whole)
    train(dataclasses.replace(stopped, train=dataclasses.replace(stopped.train, stop_at=3)))
    train(teacher)
    assert saved_steps(teacher.run_folder)[-1] == 8, "there is a newer one"
    train(stopped)
    assert losses(stopped.run) == losses(whole.run)
    shutil.rmtree(teacher.run_folder / "checkpoints" / "4")
    with pytest.raises(UserError, match=r"b learns from step 4 of .*teacher: .* has no step 4"):
        train(stopped)


def test_a_teacher_that_has_become_another_is_refused(whole_run, experiment, tmp_path):
    run = find(whole_run)
    for name, step in (("model", 8), ("other", 3)):
        found = find(whole_run, step)
        save_model(tmp_path / name, run.config, load_arrays(found), run.record, byte_codec().files)
    config = learning_from(experiment("run", eval_every=100), tmp_path / "model", 0, 0.9)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=3)))
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "other").rename(tmp_path / "model")
    with pytest.raises(UserError, match=r"model is not what .*run learns from any more: the SHA-256 of its weights"):
        train(config)


def test_adapters_of_other_weights_are_no_source_to_go_on_with(whole_run, experiment, tmp_path):
    """And checkpoints that lack what lies in their own source are left as they are."""
    run = find(whole_run)
    for name, step in (("one", 8), ("two", 3)):
        save_model(tmp_path / name, run.config, load_arrays(find(whole_run, step)), run.record, byte_codec().files)
        train(learning_from(experiment(f"on-{name}", eval_every=100), tmp_path / name, 2, 0.0))
    first = learning_from(experiment("run", eval_every=100), tmp_path / "on-one", 2, 0.0)
    train(dataclasses.replace(first, train=dataclasses.replace(first.train, stop_at=3)))
    with pytest.raises(UserError, match=r"run was trained from other weights than .*on-two, which lie in .*one; go on with"):
        train(dataclasses.replace(first, source=str(tmp_path / "on-two")))
    assert [path.name for path in (first.run_folder / "checkpoints").iterdir() if path.is_dir()] == ["3"]
    assert train(first).steps == 6


def test_a_corpus_that_was_prepared_from_other_texts_is_refused(experiment, tmp_path):
    def prepared(text: str, source: str) -> None:
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
        (tmp_path / source).write_text(text * 200)
        prepare([tmp_path / source], tmp_path / "corpus", Preparation("bytes", held_out=0.0, workers=1))

    prepared("three words here ", "a.txt")
    config = experiment("run", eval_every=100)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "corpus")))
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=3)))
    prepared("other words here ", "a.txt")
    with pytest.raises(UserError, match=r"corpus is not the corpus that .*run began with, though it lies in the same place"):
        train(config)
    prepared("three words here ", "b.txt")
    assert train(config).steps == 8, "the same text under another name"


def test_a_run_of_before_goes_on(uninterrupted, experiment):
    config = experiment("whole")
    shutil.rmtree(config.run_folder / "checkpoints" / "8")
    (config.run_folder / INPUTS).unlink()
    assert train(config).steps == 8
    assert (config.run_folder / INPUTS).is_file()
