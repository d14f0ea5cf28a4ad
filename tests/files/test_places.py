"""A URL that is no place is refused in one line: by every command and option, every field, and from Python."""

import dataclasses
import types
import typing
from pathlib import Path

import pytest
from typed import fails

import a3jax
from a3jax.checkpoint.folder import find
from a3jax.cli import COMMANDS
from a3jax.config import Config
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.experiment.combine import product
from a3jax.export.exporter import export_model
from a3jax.files.places import local, place
from a3jax.show.describe import describe
from a3jax.sweep.trials import make_sweep
from a3jax.train.loop import train
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source

URL = "az://bucket/x"
EXPERIMENT = """
from a3jax.config import Config
from a3jax.experiment.combine import product
def experiment(): return Config("x", source="nowhere")
def sweep(): return product({"seed": [0, 1]})
"""
WORDS = {
    "import": ["<source>", "<out>"],
    "inspect": ["<path>"],
    "prepare": ["<sources>", "out", "--tokenizer", "bytes", "--chat", "messages"],
    "export": ["<checkpoint>", "<out>"],
    "generate": ["<checkpoint>"],
    "score": ["<checkpoint>"],
    "evaluate": ["<checkpoints>", "--tasks", "stories"],
    "serve": ["<checkpoint>"],
    "curriculum": ["EXPERIMENT"],
    "data show": ["EXPERIMENT"],
    "data bench": ["EXPERIMENT"],
    "train": ["EXPERIMENT"],
    "plan": ["EXPERIMENT", "--topology", "v5e:4x4"],
    "sweep run": ["EXPERIMENT", "--dry-run"],
    "sweep status": ["<folder>"],
    "sweep report": ["<folder>"],
}
"""Command lines that lack nothing, with names for what is not an option."""
PARTS = {"data": ["data show", "data bench"], "sweep": ["sweep run", "sweep status", "sweep report"]}
NO_PLACES = {
    "import": {"start"},
    "prepare": {"sources", "start", "end", "column", "split", "include", "exclude", "chat"},
    "export": {"devices.coordinator", "as_"},
    "generate": {"devices.coordinator", "text", "rewrite", "prompt", "chat", "tokens", "order", "stop"},
    "score": {"devices.coordinator", "text", "blanks", "order"},
    "evaluate": {"devices.coordinator", "text", "column", "split", "include", "orders", "sizes", "code", "order", "stop"},
    "serve": {"devices.coordinator", "host", "trusted_proxy"},
    "train": {"coordinator"},
    "plan": {"topology"},
    Config: {
        *("model.family", "data.path", "data.mixture.path", "data.chat", "data.mixture.chat"),
        *("adapt.frozen", "profile.steps", "train.wandb", "train.sample"),
    },
}
"""Texts that are none, and the sources of texts, which can be URLs."""


def texts(kind: type, prefix: str = "") -> typing.Iterator[str]:
    """The fields of a dataclass that hold a text or a path, dotted where they lie in another dataclass."""
    for name, hint in typing.get_type_hints(kind).items():
        kinds = set(_kinds(hint))
        for inner in kinds:
            if dataclasses.is_dataclass(inner):
                yield from texts(inner, "" if inner.__name__ in ("DecodingOptions", "Loading") else f"{prefix}{name}.")
        if kinds & {str, Path}:
            yield prefix + name


def _kinds(hint: object) -> typing.Iterator[object]:
    """The types that a type is made of."""
    if typing.get_origin(hint) in (tuple, typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(hint):
            yield from _kinds(part)
    else:
        yield hint


def _options() -> typing.Iterator[tuple[str, type]]:
    """Every command, and the dataclass of its options."""
    for name, (kind, *_) in COMMANDS.items():
        apart = {field.name: field.type for field in dataclasses.fields(kind)}
        kinds = [one for one in _kinds(apart.get("options", kind)) if dataclasses.is_dataclass(one)]
        parts = PARTS.get(name, [name])
        assert len(parts) == len(kinds), f"a new part of a3jax {name}: name it here"
        yield from zip(parts, kinds)


PLACES = [(name, field) for name, kind in _options() for field in texts(kind) if field not in NO_PLACES.get(name, ())]
FIELDS = [field for field in texts(Config) if field not in NO_PLACES[Config]]


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "x.py").write_text(EXPERIMENT)
    return tmp_path / "x.py"


def test_nothing_is_forgotten():
    assert {name for name, _ in _options()} == set(WORDS)
    known = {(name, field) for name, kind in _options() for field in texts(kind)} | {(Config, f) for f in texts(Config)}
    assert {(name, field) for name, fields in NO_PLACES.items() for field in fields} - known == set(), "some are gone"
    assert len(PLACES) > 25
    assert FIELDS == ["name", "source", "run", "train.executables"]


@pytest.mark.parametrize(("command", "option"), PLACES)
def test_every_option_that_takes_a_path(command, option, experiment, capsys):
    words = [str(experiment) if word == "EXPERIMENT" else word for word in WORDS[command]]
    given = [URL if word == f"<{option}>" else word.strip("<>") for word in words]
    if URL not in given:
        given += [f"--{option.replace('_', '-')}", URL]
    assert f"{URL} is a URL" in fails(capsys, *command.split(), *given)
    assert list(Path.cwd().iterdir()) == []


def test_the_corpus_that_prepare_writes(experiment, capsys):
    assert f"{URL} is a URL" in fails(capsys, "prepare", experiment, URL, "--tokenizer", "bytes")


@pytest.mark.parametrize("command", [name for name, words in WORDS.items() if "EXPERIMENT" in words])
def test_every_experiment_and_its_fields(command, experiment, capsys):
    more = WORDS[command][1:]
    for name in (URL, f"{URL}.py", f"{URL}.json"):
        assert f"{URL}" in (line := fails(capsys, *command.split(), name, *more))
        assert "is a URL" in line
    for field in FIELDS:
        line = fails(capsys, *command.split(), experiment, *more, f"--{field}", URL)
        assert f"{URL} is a URL" in line
    assert list(Path.cwd().iterdir()) == []


def test_from_python(model_folder, tiny, experiment):
    gone = Path(URL)  # a slash of it is lost
    calls = [
        lambda place: a3jax.load(place),
        lambda place: open_source(place),
        lambda place: find(Path(place)),
        lambda place: describe(Path(place)),
        lambda place: export_model(find(model_folder), Path(place)),
        lambda place: import_model(open_source(place), Path("out")),
        lambda place: prepare([experiment], Path(place), Preparation("bytes")),
        lambda place: prepare([experiment], Path("out"), Preparation(str(place))),
        lambda place: train(Config("x", model=tiny(), run=str(place))),
        lambda place: make_sweep(Config("x", model=tiny()), product({"seed": [0]}), Path(place)),
    ]
    for call in calls:
        for each in (URL, gone):
            with pytest.raises(UserError, match=r"az:/+bucket/x.* is a URL"):
                call(each)
    assert list(Path.cwd().iterdir()) == []


def test_what_is_a_path():
    for name in ("a", "/a:b/c", "./x", "a/b:c", "owner/model@main", "C:/x"):
        assert str(local(name)) == str(place(name)) == str(Path(name))
    for name in ("file:///x", "http://h/x", "x/gs://b", "gs://", "gcs://b/x"):
        with pytest.raises(UserError, match="is a URL"):
            place(name)
    for name in ("s3://b", "gs:/b/x"):
        assert str(place(name)).startswith(("s3://b", "gs://b/x"))
        with pytest.raises(UserError, match="is a URL, and this is read on this machine only"):
            local(name)
    with pytest.raises(UserError, match="zero byte"):
        place("a\0b")
