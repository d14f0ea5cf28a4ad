"""Sources where a corpus could stand: prepared once, into the run folder."""

import dataclasses
import os
import time

import numpy as np
import pytest

from a3jax.config import Config, DataConfig, SourceConfig
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.train import direct
from a3jax.train.direct import with_corpora


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "my texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"text number {i} " * 9)
    return folder


def config(tmp_path, *paths) -> Config:
    sources = tuple(SourceConfig(str(path), 1.0 + i) for i, path in enumerate(paths))
    return Config("test", run=str(tmp_path / "run"), data=DataConfig(length=16, batch=4, mixture=sources))


def test_a_source_is_prepared_once_and_read_as_if_it_had_been_before(texts, tmp_path, monkeypatch):
    prepare([str(texts)], tmp_path / "corpus", Preparation("bytes"))
    mixed = config(tmp_path, texts, tmp_path / "corpus")
    data = with_corpora(mixed)
    assert [source.path for source in data.sources] == [str(tmp_path / "run/data/0-my-texts"), str(tmp_path / "corpus")]
    assert [source.weight for source in data.sources] == [1.0, 2.0]
    monkeypatch.setattr(direct, "prepare", None)  # a second time would fail
    again = with_corpora(mixed)
    assert again == data
    found = [
        Batches(open_corpora(with_corpora(c)), c.data, 5, 0)[3] for c in (mixed, config(tmp_path, *[tmp_path / "corpus"] * 2))
    ]
    np.testing.assert_array_equal(found[0]["tokens"], found[1]["tokens"])


def test_a_single_path_may_be_a_source_too(texts, tmp_path):
    single = dataclasses.replace(config(tmp_path), data=DataConfig(str(texts / "0.txt"), length=16, batch=4))
    (corpus,) = open_corpora(with_corpora(single))
    assert (corpus.name, corpus.manifest.train.documents + corpus.manifest.held_out.documents) == ("0-0.txt", 1)


def test_a_source_that_cannot_be_read_is_one_line_and_a_path_of_nothing_no_source(texts, tmp_path):
    (texts / "x.jsonl").write_text("not JSON\n")
    with pytest.raises(UserError, match=r"x\.jsonl:1 is not JSON"):
        with_corpora(config(tmp_path, texts / "x.jsonl"))
    assert not (tmp_path / "run" / "data" / "0-x.jsonl").exists()
    with pytest.raises(UserError, match="nowhere is not a prepared corpus"):
        with_corpora(config(tmp_path, texts, "nowhere"))
    assert not (tmp_path / "run" / "data" / "0-my-texts").exists(), "found before anything is prepared"


def test_before_a_run_begins_texts_are_those_that_are_there_and_then_those_that_it_began_with(texts, tmp_path):
    """An earlier try may have failed after they were prepared."""
    here, other = tmp_path / "a" / "t.txt", tmp_path / "b" / "t.txt"
    for file, text in ((here, "here"), (other, "elsewhere")):
        file.parent.mkdir()
        file.write_text(text * 30)

    def characters(path) -> int:
        (corpus,) = open_corpora(with_corpora(config(tmp_path, path)))
        return corpus.manifest.characters

    assert characters(here) == 120
    assert characters(other) == 270, "a file of the same name"
    assert characters(here) == 120
    here.write_text("changed" * 30)
    os.utime(here, (time.time() + 9, time.time() + 9))
    assert characters(here) == 210
    (corpus,) = open_corpora(with_corpora(config(tmp_path, here), looked=True))
    assert corpus.manifest.characters == 210, "though the file is of tomorrow"
    (tmp_path / "run" / "config.json").write_text("{}")  # it has begun
    here.write_text("changed again" * 30)
    assert characters(here) == 210
    with pytest.raises(UserError, match=r"0-t.txt holds what the run began with, which is not .*b/t.txt; give another"):
        characters(other)
    here.unlink()
    assert characters(here) == 210, "they need not be there any more"
