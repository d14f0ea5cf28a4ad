"""TFDS: a data set that is built offline, in ArrayRecord and without TensorFlow, is read by its name and by its folder."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.sources import interface
from a3jax.data.sources import tfds as module
from a3jax.data.sources.interface import Fault, Tokens
from a3jax.data.sources.opening import Reading, open_source
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError

FEATURES = {"text": tfds.features.Text(), "ids": tfds.features.Sequence(np.int32), "label": np.int64}
ROWS = {"train": 300, "test": 7}


def texts(split):
    return [f"{split} {i} é" * (i % 7) for i in range(ROWS[split])]


class OfTests(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # so that only its files say what it is
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(FEATURES), disable_shuffling=True)

    def _split_generators(self, _):
        return {split: self._generate_examples(split) for split in ROWS}

    def _generate_examples(self, split):
        for i, text in enumerate(texts(split)):
            yield i, {"text": text, "ids": list(range(i % 5)), "label": i}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    OfTests.pkg_dir_path = folder
    OfTests(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def _found(built, monkeypatch):
    """TFDS looks where the data set is, which an environment variable says to it when it is imported."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(built))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(built))
    for cache in (module._builder, module._rows):
        cache.cache_clear()


def read(named, **options):
    (source,) = open_source(str(named), Reading(**options))
    return [document for part in source.parts() for document in source.documents(part)]


@pytest.mark.parametrize("named", ["tfds:of_tests", "tfds:of_tests:1.2.0", "folder"])
def test_a_data_set_built_offline_is_read_by_name_and_version_or_folder_without_tensorflow(named, built, monkeypatch):
    monkeypatch.setattr(interface, "PART_BYTES", 3000)
    named = built / "of_tests" / "1.2.0" if named == "folder" else named
    assert read(named) == texts("train")
    assert read(named, split="test") == texts("test")
    assert "tensorflow" not in sys.modules
    (source,) = open_source(str(named), Reading())
    assert len(source.parts()) > 2


def test_columns_of_token_ids_are_read_too():
    found = read("tfds:of_tests", column="ids")
    assert [d.ids.tolist() if isinstance(d, Tokens) else [] for d in found] == [list(range(i % 5)) for i in range(300)]


def test_it_can_be_prepared(tmp_path):
    manifest = prepare(["tfds:of_tests:1.2.0"], tmp_path / "out", Preparation("bytes", held_out=0.0, workers=1))
    stream = TokenStream(tmp_path / "out", read_manifest(tmp_path / "out"), "train")
    wanted = [load_codec("bytes").document(text) for text in texts("train") if text]
    assert stream.read(np.array([0]), np.array([len(stream)]))[0].tolist() == np.concatenate(wanted).tolist()
    assert manifest.passed_over == {"empty": 300 - len(wanted)}


@pytest.mark.parametrize(
    ("named", "options", "message"),
    [
        ("tfds:of_tests", {"column": "txt"}, "tfds:of_tests has no 'txt'; it has ids, label, text: name one with --column"),
        ("tfds:of_tests", {"split": "dev"}, "tfds:of_tests has no split 'dev'; it has .*test.*: choose one with --split"),
        ("tfds:of_tests:3.0.0", {}, r"tfds:of_tests:3.0.0 cannot be opened: .*; .*of_tests has version 1\.2\.0"),
        (
            "tfds:of_nobody",
            {},
            "tfds:of_nobody cannot be opened: .*where tfds build of_nobody --file_format=array_record puts",
        ),
        ("tfds:mnist", {}, "tfds:mnist (has not been built in|cannot be opened).*where tfds build mnist"),
    ],
)
def test_what_is_not_there_is_one_sentence_that_says_what_is(named, options, message):
    with pytest.raises(UserError, match=message) as caught:
        read(named, **options)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_no_text_and_a_shard_that_is_cut_short_are_named_with_their_row(built):
    found = read("tfds:of_tests", column="label")
    assert found[3].message == (
        "tfds:of_tests, row 3 has the number 3 in 'label', neither text nor token ids: name another with --column"
    )
    (shard,) = (built / "of_tests" / "1.2.0").glob("*-test.array_record*")
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[: len(whole) - 100])
        module._rows.cache_clear()
        (fault,) = read("tfds:of_tests", split="test")
        assert isinstance(fault, Fault)
        assert fault.message.startswith("tfds:of_tests, row 0 cannot be read: ")
    finally:
        shard.write_bytes(whole)
