"""A disk that fills up while a folder is written: one clear line, and nothing left but what the next try goes on from."""

import contextlib
import resource
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import find
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.model.parameters import shapes
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write beyond `size` bytes, as it does on a full disk, to this process and its children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def model(tiny):
    config = tiny(vocab=258)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), nnx.to_pure_dict(shapes(config)))
    return config, params, Provenance("random"), byte_codec().files


def test_saving_a_model_leaves_nothing(model, tmp_path):
    with no_file_larger_than(8000), pytest.raises(UserError, match="model could not be written: the disk is full"):
        save_model(tmp_path / "model", *model)
    assert not list(tmp_path.iterdir())


def test_export_goes_on_when_there_is_room(model, tmp_path):
    save_model(tmp_path / "model", *model)
    with no_file_larger_than(8000), pytest.raises(UserError, match=r"disk is full.*goes on from .*out\.partial"):
        export_model(find(tmp_path / "model"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.partial"]
    export_model(find(tmp_path / "model"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_import_goes_on_when_there_is_room(model, tmp_path):
    save_model(tmp_path / "model", *model)
    export_model(find(tmp_path / "model"), tmp_path / "source")
    with no_file_larger_than(8000), pytest.raises(UserError, match=r"disk is full.*goes on from .*again\.partial"):
        import_model(open_source(tmp_path / "source"), tmp_path / "again")
    import_model(open_source(tmp_path / "source"), tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, load_arrays(find(tmp_path / "again")), model[1])


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_goes_on_when_there_is_room(workers, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 100_000)
    sources, out = sorted(tmp_path.glob("*.txt")), tmp_path / "corpus"
    with (
        no_file_larger_than(20_000),
        pytest.raises(UserError, match=r"corpus could not be written: the disk is full.*partial"),
    ):
        prepare(sources, out, Preparation("bytes", workers=workers))
    assert sorted(path.name for path in tmp_path.glob("corpus*")) == ["corpus.partial"]
    prepare(sources, out, Preparation("bytes", workers=workers))
    assert sorted(path.name for path in tmp_path.glob("corpus*")) == ["corpus"]
