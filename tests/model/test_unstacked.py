"""Layers that lie apart: the same numbers as from a stack, and no layer's matrices copied out of one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import a3jax
from a3jax.checkpoint.folder import find, load_params
from a3jax.config import Experts
from a3jax.model.parameters import declared, graph
from a3jax.model.two_stream import Compute
from a3jax.model.unstacked import Unstacked, unstacked
from a3jax.ordering import draw_order, example_keys
from a3jax.weights.identity import identity

SHAPES = {
    "plain": {},
    "one layer": {"layers": 1},
    "adapters of queries": {"adapter_rank": 3, "adapter_stream": "query"},
    "adapters of both": {"adapter_rank": 3, "adapter_stream": "both"},
    "two kinds of layers": {"local_layers": (0, 2), "local_window": 5, "qkv_bias": True, "post_norm": True},
    "experts": {"experts": Experts(4, 2)},
}


def apart(net):
    """The same network with its layers apart; its own arrays stay."""
    copies = jax.tree.map(jnp.array, nnx.state(net, nnx.Param))
    return nnx.merge(graph(net.config), unstacked(copies))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_a_stack_computes(shape, tiny, network, packed):
    net = network(tiny(**SHAPES[shape]))
    token_BxL = np.random.default_rng(0).integers(0, 48, packed.shape).astype(np.int32)
    order = draw_order(example_keys(0, 0, len(packed)), packed, "random", 4, 0.5, net.config.seeding)

    @jax.jit
    def all_of(net):
        return [of(token_BxL, order, Compute()) for of in (net.query_hidden, net.content_hidden)]

    for own, expected in zip(all_of(apart(net)), all_of(net)):
        np.testing.assert_allclose(own, expected, atol=2e-6)


def test_a_model_that_is_loaded_has_its_matrices_apart_and_is_the_same(model_folder):
    model, stacked = a3jax.load(model_folder), load_params(find(model_folder))
    for (path, leaf), (_, stack) in zip(nnx.to_flat_state(model.params), nnx.to_flat_state(stacked)):
        assert isinstance(leaf[...], Unstacked) == (declared(leaf).kind == "matrix"), path
        assert (leaf[...].shape, leaf[...].dtype) == (stack[...].shape, stack[...].dtype)
        np.testing.assert_array_equal(np.asarray(leaf[...]), stack[...])
    assert identity(model) == identity(dataclasses.replace(model, params=stacked))


def test_no_matrix_is_copied_out_of_a_stack(tiny, network, packed):
    net = network(tiny())

    def copies(net):
        order = draw_order(example_keys(0, 0, len(packed)), packed, "random", 4, 0.5, net.config.seeding)
        hidden = jax.jit(lambda net: net.query_hidden(np.zeros_like(packed), order, Compute()))
        compiled = hidden.lower(net).compile().as_text()
        return [line for line in compiled.splitlines() if " dynamic-slice(f32[2,16,24]" in line or "f32[1,16,24]" in line]

    assert copies(net)
    assert not copies(apart(net))
