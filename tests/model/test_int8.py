"""Matrices in int8: each weight within half a step, and a model that computes as with these weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import a3jax
from a3jax.model.int8 import Int8
from a3jax.model.parameters import declared


@pytest.fixture(scope="module")
def whole(model_folder):
    return a3jax.load(str(model_folder), "int8")


def test_matrices_alone_are_rounded(model, whole):
    for (path, own), (_, leaf) in zip(nnx.to_flat_state(model.params), nnx.to_flat_state(whole.params)):
        weight, found = own[...], leaf[...]
        if declared(own).kind != "matrix":
            np.testing.assert_array_equal(weight, found, err_msg=str(path))
            continue
        assert isinstance(found, Int8)
        assert (found.values.dtype, found.values.shape) == (jnp.int8, weight.shape)
        over = tuple(range(1, 1 + declared(own).inputs))
        scales = jnp.expand_dims(found.scales, over)
        assert float(jnp.abs(found.values * scales - weight).max()) <= float(found.scales.max()) / 2 + 1e-7
        np.testing.assert_allclose(scales * 127, jnp.abs(weight).max(over, keepdims=True), rtol=1e-6)


def test_a_model_computes_with_them(model, whole):
    def plain(leaf):
        value = leaf[...]
        if not isinstance(value, Int8):
            return leaf
        return leaf.replace(value.values * jnp.expand_dims(value.scales, tuple(range(1, 1 + declared(leaf).inputs))))

    is_leaf = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    by_hand = dataclasses.replace(model, params=jax.tree.map(plain, whole.params, is_leaf=is_leaf))
    for order in ("ar", "random_4"):
        ours, expected = (a3jax.log_likelihood(one, "Once upon a time", order) for one in (whole, by_hand))
        np.testing.assert_allclose(ours.log_probs, expected.log_probs, atol=1e-4)
    filled, expected = (a3jax.infill(one, "Once [[5]] a [[3]].", order="random_2", seed=1) for one in (whole, by_hand))
    assert filled.text == expected.text
