"""The command line as a user types it: the whole road on a small model, and one line for every mistake."""

import dataclasses
import functools
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typed
from chosen import long_after
from typed import fails, run

from a3jax import cli
from a3jax.cli import COMMANDS
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.experiment.files import load_experiment

EXPERIMENT = """
from a3jax.config import Config, DataConfig, OptimizerConfig, Stage, TrainConfig

def experiment():
    return Config(
        name="road", source="model", run="run", data=DataConfig("corpus", length=32, batch=2),
        curriculum=(Stage(2, "in_order", 2), Stage(2, "random", 4)), optimizer=OptimizerConfig(peak_lr=1e-3, warmup=1),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_windows=2),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama made by transformers, with the byte tokenizer; texts; and an experiment."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("road")
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=256,
        eos_token_id=257,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "source")
    for name, content in byte_codec().files.items():
        (folder / "source" / name).write_bytes(content)
    (folder / "texts").mkdir()
    for i in range(30):
        (folder / "texts" / f"{i}.txt").write_text(f"The number {i} is followed by the number {i + 1}.\n")
    (folder / "road.py").write_text(EXPERIMENT)
    return folder


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"a3jax {importlib.metadata.version('a3jax')}\n"


def test_results_fit_the_terminal(monkeypatch, capsys):
    facts = {"what": "run folder", "nll": {f"random_{n}": 1.23456 for n in range(9)}, "saved_steps": ", ".join("123456789")}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    cli._show(facts)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith(" " * 23)]
    assert " ".join(" ".join(lines).split()) == (
        f"what run folder nll {', '.join(f'random_{n} 1.235' for n in range(9))} saved steps 1, 2, 3, 4, 5, 6, 7, 8, 9"
    )


@pytest.mark.long
def test_the_whole_road_in_json(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)  # as people do, paths are given from where they are
    answer = functools.partial(typed.answer, capsys)
    imported = answer("import", "source", "model")
    assert imported["family"] == "llama"
    corpus = answer("prepare", "texts", "corpus", "--tokenizer", "model", "--held-out", "0.3")
    assert corpus["train"]["documents"] + corpus["held_out"]["documents"] == 30
    trained = answer("train", "road.py", "--seed", "3")
    assert trained["steps"] == 4
    assert set(trained["nll"]) == {"ar", "in_order_4", "random_1", "random_4", "random_8"}
    filled = answer("generate", "run", "--text", "The number [[3]] is [[2]].", "--order", "random_2")
    assert filled["text"].startswith("The number ")
    assert [len(blank["tokens"]) for blank in filled["blanks"]] == [3, 2]
    assert all(blank["log_prob"] < 0 for blank in filled["blanks"])
    assert filled["forwards"] == 3
    assert answer("export", "run", "exported", "--verify")["max_logit_difference"] < 1e-4
    assert answer("export", "run", "llama", "--as", "llama", "--verify")["max_logit_difference"] < 1e-4
    again = answer("import", "exported", "again")
    assert again["parameters"] > imported["parameters"], "adapters come along"
    assert answer("generate", "again", "--text", "The number [[3]].")["blanks"]

    run("generate", "run", "--text", "The number [[3]].")
    assert "⟦" in capsys.readouterr().out
    assert "--as qwen2" not in fails(capsys, "export", "run", "other", "--as", "qwen2")
    assert "exists already" in fails(capsys, "import", "source", "model")
    assert "context" in fails(capsys, "generate", "run", "--text", "a [[60]] b [[60]]")
    assert "seed = 3, not 4" in fails(capsys, "train", "road.py", "--seed", "4")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    assert f"a3jax {name} " in capsys.readouterr().out.split("usage: ")[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["imprt"], "did you mean 'import'"),
        (["import", "nowhere", "out"], "nowhere does not exist"),
        (["import", "nowhere"], "Missing"),
        (["generate", "nowhere", "--text", "[[1]]"], "nowhere does not exist"),
        (["generate", "nowhere", "--txt", "[[1]]"], "--text"),
        (["generate", "nowhere", "--text", "[[1]]", "--temperature", "hot"], "--temperature"),
        (["prepare", "nowhere", "out", "--tokenizer", "bytes"], "nowhere does not exist"),
        (["prepare", "nowhere", "--tokenizer", "bytes"], "last, the corpus folder"),
        (["train", "nowhere"], "experiments/nowhere.py does not exist"),
        (["export", "nowhere", "out"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_of_an_experiment_names_the_nearest(folder, capsys):
    line = fails(capsys, "train", folder / "road.py", "--optimizer.peek-lr", "1")
    assert "did you mean '--optimizer.peak-lr'" in line


@pytest.mark.parametrize(
    "text",
    [
        "1 +",
        "x = 1",
        "def experiment(): return 1",
        "def experiment(): return missing",
        "raise SystemExit(5)",
        "from a3jax.config import Config\ndef experiment(): return Config('x', seed='y')",
    ],
)
def test_a_broken_experiment_is_named(text, tmp_path):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError, match=r"broken\.py: "):
        load_experiment(str(tmp_path / "broken.py"))


def test_the_experiments_of_this_project_load(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    for path in Path("experiments").glob("*.py"):
        assert load_experiment(path.stem).steps > 0


def test_the_papers_experiments_are_what_the_authors_script_does_by_default(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    small, *others = (load_experiment(f"paper_{size}") for size in ("1b", "3b", "8b"))
    optimizer = small.optimizer
    stages = [(stage.steps, stage.family, stage.group_size) for stage in small.curriculum]
    families = [("in_order", 1), ("in_order", 2), ("in_order", 4), ("random", 4), ("random", 8)]
    assert stages == [(800, *family) for family in families]
    assert (small.data.batch, small.data.length, small.data.packing) == (8 * 16, 4096, "truncate")
    assert (optimizer.peak_lr, optimizer.weight_decay, optimizer.warmup) == (2e-5, 0.01, 50)
    assert (optimizer.schedule, optimizer.final_lr, optimizer.per_stage) == ("linear", 0, True)
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.clip) == (0.9, 0.999, 1e-8, 1)  # of transformers' Trainer
    assert (small.seeding, small.adapt.query_seed, small.trains_adapters) == ("learned", "normal", False)
    for other in others:
        same = dataclasses.replace(other, name=small.name, source=small.source, model=small.model)
        assert same == small


def inspecting(folder):
    """A command line that prints something."""
    (folder / "tëxt.txt").write_text("some text")
    prepare([folder / "tëxt.txt"], folder / "data", Preparation("bytes", workers=1))
    return [sys.executable, "-m", "a3jax.cli", "inspect", str(folder / "data")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("more", long_after(1, [[], ["--json"]]))
def test_a_full_disk_under_standard_output_is_one_line(more, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*inspecting(tmp_path), *more], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "a3jax: the disk is full; make room and run the same command again\n")


@pytest.mark.long
def test_a_letter_that_the_terminal_lacks_is_shown_by_its_number(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(inspecting(tmp_path), env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"t\\xebxt.txt" in done.stdout


@pytest.mark.long
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    command = inspecting(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
