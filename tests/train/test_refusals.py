"""What is refused before a run begins, or goes on, and leaves everything as it is."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from a3jax.config import AdaptConfig
from a3jax.errors import UserError
from a3jax.files.strict import to_json
from a3jax.train.loop import train
from a3jax.train.run import only_process


def test_another_experiment_is_refused_in_the_same_folder(uninterrupted, experiment):
    config = dataclasses.replace(experiment("whole"), seed=1)
    with pytest.raises(UserError, match="seed = 0, not 1"):
        train(config)
    train(experiment("whole", save_every=5))  # what does not change the steps may change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"path": "nowhere"}}, "nowhere is not a prepared corpus"),
        ({"data": {"length": 128}}, "data.length 128 is more than the model's context of 64"),
        ({"model": {"starts": False}}, "data/prepared begin with '<|start|>', but documents of .* model begin with no token"),
        ({"model": {"vocab": 257, "end_tokens": ()}}, "token ids up to 257, but the model has 257"),
        ({"model": {"width": 16}, "mesh": {"data": 3}}, "does not cover 1 devices"),
        ({"source": "nowhere", "model": None}, "nowhere does not exist"),
        ({"train": {"accumulate": 3}}, "does not divide data.batch 4"),
        ({"train": {"eval_every": 0}}, "train.eval_every is 0; it must be at least 1"),
        ({"optimizer": {"peak_lr": -1.0}}, "optimizer.peak_lr is -1.0; it must be at least 0"),
        ({"optimizer": {"decay": 2.0}}, "optimizer.decay is 2.0; it must be from 0 to 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(change, message, experiment):
    config = experiment()
    parts = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, **parts))
    assert not config.run_folder.exists()


def test_a_model_given_beside_its_source_must_be_that_of_the_source(uninterrupted, experiment):
    config = dataclasses.replace(experiment("other"), source=uninterrupted, adapt=AdaptConfig(rank=0))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, rope_theta=7.0))
    with pytest.raises(UserError, match=r"model.rope_theta is 7.0, but .* has 10000.0; correct the experiment's model"):
        train(other)
    assert not other.run_folder.exists()
    assert train(config).steps == 8


def test_two_processes_do_not_train_in_one_folder(experiment):
    config = experiment()
    config.run_folder.mkdir()
    with only_process(config.run_folder), pytest.raises(UserError, match="run is being trained by another process"):
        train(config)
    assert train(config).steps == 8


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_second_command_leaves_a_run_that_trains_as_it_is_to_the_last_bit(uninterrupted, experiment):
    """Whether its experiment differs in what is free to change, in its source of data, or in nothing."""
    config = experiment("whole")
    (config.run_folder / "config.json").write_text(to_json(config).replace("\n", "\n\n"))
    program = "import sys, time\nfrom pathlib import Path\nfrom a3jax.train.run import only_process\n"
    program += "with only_process(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program, config.run], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            before = contents(config.run_folder)
            with pytest.raises(UserError, match="whole is being trained by another process; wait for it"):
                train(experiment("whole", log_every=7))
            (config.run_folder.parent / "text.txt").write_text("another text " * 100)
            text = dataclasses.replace(config.data, path=str(config.run_folder.parent / "text.txt"))
            with pytest.raises(UserError, match=r"holds a run with data\.path"):
                train(dataclasses.replace(config, data=text))
            assert contents(config.run_folder) == before
        finally:
            other.kill()


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "params/_METADATA", "checkpoints/1/state", "metrics.jsonl"])
def test_a_folder_that_is_no_runs_is_not_trained_in(name, experiment):
    """Such as a model folder that `--run` names."""
    config = experiment("mine")
    file = config.run_folder / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    before = contents(config.run_folder)
    with pytest.raises(UserError, match=rf"mine is not a run's folder, and {name.partition('/')[0]} in it would be lost"):
        train(config)
    assert contents(config.run_folder) == before
