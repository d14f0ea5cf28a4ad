"""Weights in int8: each within half a step, and a model that computes as with these weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import a3jax
from a3jax.model.int8 import Int8, multiplied, rounded
from a3jax.model.parameters import declared, graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_order, example_keys

ROUNDED = {"matrix", "adapter", "embedding", "head"}


@pytest.fixture(scope="module")
def whole(model_folder):
    return a3jax.load(str(model_folder), "int8")


def reduced(leaf) -> tuple[int, ...]:
    """The axes of a parameter that a product sums over; those of a table are D."""
    what = declared(leaf)
    return tuple(range(1, 1 + what.inputs)) if what.inputs else (1,)


def is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def as_floats(leaf):
    value = leaf[...]
    return value.values * jnp.expand_dims(value.scales, reduced(leaf)) if isinstance(value, Int8) else value


def test_what_a_pass_reads_most_of_is_rounded(model, whole):
    for (path, own), (_, leaf) in zip(nnx.to_flat_state(model.params), nnx.to_flat_state(whole.params)):
        weight, found = np.asarray(own[...]), leaf[...]
        if declared(own).kind not in ROUNDED:
            np.testing.assert_array_equal(weight, found, err_msg=str(path))
            continue
        assert isinstance(found, Int8), path
        assert (found.values.dtype, found.values.shape) == (jnp.int8, weight.shape)
        scales = jnp.expand_dims(found.scales, reduced(own))
        assert float(jnp.abs(as_floats(leaf) - weight).max()) <= float(found.scales.max()) / 2 + 1e-7
        np.testing.assert_allclose(scales * 127, jnp.abs(weight).max(reduced(own), keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
@pytest.mark.parametrize(("inputs", "outputs"), [((40,), (24,)), ((4, 10), (24,)), ((40,), (3, 8))])
def test_a_product_is_that_of_the_numbers_that_it_stands_for(rows, inputs, outputs):
    rng = np.random.default_rng(rows)
    values = rng.integers(-127, 128, (*inputs, *outputs)).astype(np.int8)
    scales = rng.uniform(0.5, 2, outputs).astype(np.float32)
    x = (rng.standard_normal((1, rows, *inputs)) * rng.uniform(0, 100, (1, rows, *[1] * len(inputs)))).astype(np.float32)
    x[0, 0] = 0  # a row of nothing
    found = multiplied(jnp.asarray(x), Int8(jnp.asarray(values), jnp.asarray(scales)), tuple(range(len(inputs))))
    expected = np.tensordot(x.astype(np.float64), values.astype(np.float64), len(inputs)) * scales
    # Each of the 40 numbers of a row is off by at most half a 32,639th of the row's largest.
    most = 40 * 127 * 2 * np.abs(x).max(tuple(range(2, x.ndim))) / 32639 / 2
    off = np.abs(found - expected).max(tuple(range(2, found.ndim)))
    assert (off <= most + 1e-5 * np.abs(expected).max()).all()
    np.testing.assert_array_equal(found[0, 0], 0)


@pytest.mark.parametrize("shape", [{"tied_head": True}, {"tied_head": False, "adapter_rank": 3}], ids=str)
def test_head_embedding_and_adapters_compute_with_them(shape, tiny, network, packed):
    config = tiny(layers=2, **shape)
    tokens = np.random.default_rng(0).integers(0, config.vocab, packed.shape)
    order = draw_order(example_keys(0, 0, len(packed)), packed, "random", 3, 0.0, "successor")
    own = rounded(nnx.state(network(config)))
    kinds = {declared(leaf).kind for _, leaf in nnx.to_flat_state(own) if isinstance(leaf[...], Int8)}
    assert kinds == {"matrix", "embedding"} | ({"adapter", "head"} if "adapter_rank" in shape else set())

    @jax.jit
    def logits(params):
        net = nnx.merge(graph(config), params)
        hidden = net.query_hidden(tokens, order, Compute(attention="dense"))
        return net.logits(hidden), net.logits(hidden[:1, :4]), net.output_matrix

    found, expected = logits(own), logits(jax.tree.map(lambda leaf: leaf.replace(as_floats(leaf)), own, is_leaf=is_variable))
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_a_model_computes_with_them(model, whole):
    params = jax.tree.map(lambda leaf: leaf.replace(as_floats(leaf)), whole.params, is_leaf=is_variable)
    by_hand = dataclasses.replace(model, params=params)
    for order in ("ar", "random_4"):
        ours, expected = (a3jax.log_likelihood(one, "Once upon a time", order) for one in (whole, by_hand))
        np.testing.assert_allclose(ours.log_probs, expected.log_probs, atol=1e-4)
    filled, expected = (a3jax.infill(one, "Once [[5]] a [[3]].", order="random_2", seed=1) for one in (whole, by_hand))
    assert filled.text == expected.text
