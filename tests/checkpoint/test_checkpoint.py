"""Model folders: another model's weights, and files damaged in any place, are one clear error."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import ADAPTERS, MODEL, find, load_params
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.files.strict import to_json
from a3jax.model.parameters import shapes
from a3jax.weights.pretrained import pretrained
from a3jax.weights.source import open_source


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    config = tiny(vocab=258)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), nnx.to_pure_dict(shapes(config)))
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, config, params, Provenance("random"), byte_codec().files)
    return folder, params


@pytest.mark.parametrize("load", [load_params, load_arrays])
def test_what_was_saved_comes_back(load, model):
    folder, params = model
    loaded = load(find(folder))
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("load", [load_params, load_arrays])
@pytest.mark.parametrize("change", [{"width": 32}, {"layers": 2}, {"tied_head": True}, {"qkv_bias": True}])
def test_a_checkpoint_of_another_model_is_refused(load, change, model, tmp_path):
    folder = shutil.copytree(model[0], tmp_path / "model")
    (folder / MODEL).write_text(to_json(dataclasses.replace(find(folder).config, **change)))
    with pytest.raises(UserError, match=r"params does not hold the model of .*model\.json"):
        load(find(folder))


@pytest.mark.parametrize("load", [load_params, load_arrays])
def test_damage_is_named_wherever_it_is(load, model, tmp_path):
    files = [file.relative_to(model[0]) for file in (model[0] / "params").rglob("*") if file.is_file()]
    messages = []
    for i, file in enumerate(files):
        folder = shutil.copytree(model[0], tmp_path / str(i))
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        try:
            loaded = load(find(folder))
        except UserError as error:
            messages.append(str(error))
        else:  # some files hold nothing that a load needs; then nothing may be lost
            for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(model[1]), strict=True):
                np.testing.assert_array_equal(x, y)
    assert len(messages) >= 3
    assert all("params is damaged" in message and "\n" not in message for message in messages)


def test_a_folder_that_is_none_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in [("file", "is not a folder"), ("nothing", "does not exist"), (".", "has no model.json")]:
        with pytest.raises(UserError, match=message):
            find(tmp_path / name)


@pytest.mark.parametrize("opened", [find, open_source, pretrained])
def test_adapters_alone_say_where_they_go(opened, tmp_path):
    (tmp_path / ADAPTERS).write_text("{}")
    with pytest.raises(UserError, match=r"holds adapters alone.*a3jax import SOURCE MODEL --adapters"):
        opened(tmp_path)
