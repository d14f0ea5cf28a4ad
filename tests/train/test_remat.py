"""The estimate of what is kept for the backward pass, and the choice made from it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from a3jax.config import Config, DataConfig, MeshConfig, Stage, TrainConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.model.parameters import count, graph, shapes
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_order, example_keys
from a3jax.train import remat


@pytest.fixture
def config(tiny) -> Config:
    model = tiny(layers=4, width=64, ff_width=160, query_heads=8, kv_heads=2, head_width=8)
    train = TrainConfig(compute_dtype="float32", attention="chunked")
    return Config(name="test", model=model, data=DataConfig(length=128, batch=4), curriculum=(Stage(1),), train=train)


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def kept(config: Config, setting: str, batch: int) -> int:
    """Bytes that JAX hands from the forward to the backward pass."""
    model, segment_BxL = config.model, jnp.ones((batch, config.data.length), jnp.int32)

    def hidden(params: nnx.State) -> jax.Array:
        order = draw_order(example_keys(0, 0, batch), segment_BxL, "random", 4, 0.0, "successor")
        network = nnx.merge(graph(model), params)
        return network.query_hidden(segment_BxL, order, Compute(attention="chunked", remat=setting))

    residuals = jax.eval_shape(lambda params: jax.vjp(hidden, params)[1], shapes(model))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


@pytest.mark.long
def test_the_estimate_is_what_jax_keeps(config, mesh):
    grown = kept(config, "dots", 8) - kept(config, "dots", 4)
    assert remat.saved_bytes(config, config.model, mesh) == pytest.approx(grown, rel=0.15)
    assert kept(config, "none", 4) > kept(config, "dots", 4) > kept(config, "full", 4)
    assert kept(config, "offload", 4) == kept(config, "dots", 4)


def test_auto_keeps_what_fits(config, mesh):
    needed = remat.state_bytes(config, config.model, mesh) + remat.saved_bytes(config, config.model, mesh)
    assert remat.state_bytes(config, config.model, mesh) == 16 * count(config.model)
    enough = int(needed / remat.SHARE) + 1
    assert remat.choose(config, config.model, mesh, enough) == "dots"
    assert remat.choose(config, config.model, mesh, enough - 2) == "full"
    assert remat.choose(config, config.model, mesh, None) == "full"
    set_by_hand = dataclasses.replace(config, train=TrainConfig(remat="none"))
    assert remat.choose(set_by_hand, config.model, mesh, 1) == "none"


def test_offloading_is_refused_on_a_cpu(config, mesh):
    offload = dataclasses.replace(config, train=TrainConfig(remat="offload"))
    with pytest.raises(UserError, match=r"train\.remat is 'offload'"):
        remat.choose(offload, config.model, mesh, None)


def test_this_machine_has_memory():
    assert remat.device_memory(jax.devices()[0]) > 2**28
