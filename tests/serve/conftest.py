"""A tiny random model with the byte tokenizer."""

import pytest
from flax import nnx

import a3jax
from a3jax.checkpoint import save_model
from a3jax.data.tokenizer import byte_codec
from a3jax.record import Record


@pytest.fixture(scope="session")
def folder(tiny, network, tmp_path_factory):
    config = tiny(layers=2, vocab=300, start_token=256, end_tokens=(257,))
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("serve") / "model"
    save_model(out, config, params, Record("random"), byte_codec().files)
    return out


@pytest.fixture(scope="session")
def model(folder):
    return a3jax.load(folder)
