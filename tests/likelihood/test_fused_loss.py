"""The chunked loss against JAX's own differentiation of a dense log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from a3jax.likelihood.fused_loss import SoftTargets, nll_sum, token_nll

B, L, D, V = 2, 13, 8, 37


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (rng.normal(size=shape).astype(np.float32) for shape in ((B, L, D), (V, D)))
    weight = rng.uniform(size=(B, L)).astype(np.float32) * (rng.random((B, L)) < 0.7)
    return hidden, head, rng.integers(0, V, (B, L)), weight


def dense(hidden, head, target):
    return -jnp.take_along_axis(jax.nn.log_softmax(hidden @ head.T), target[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 2, 4, 10, 26, 1024])  # 13 rows per example: only 26 and 1024 take them in one piece
def test_value_and_gradients_equal_those_of_the_dense_log_softmax(chunk):
    hidden, head, target, weight = inputs()
    ours = jax.jit(jax.value_and_grad(lambda h, w: nll_sum(h, w, target, weight, chunk) / 3, argnums=(0, 1)))(hidden, head)
    theirs = jax.jit(jax.value_and_grad(lambda h, w: (dense(h, w, target) * weight).sum() / 3, argnums=(0, 1)))(hidden, head)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(token_nll(hidden, head, target, chunk), dense(hidden, head, target), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 1024])
def test_a_teacher_is_mixed_in_as_a_dense_cross_entropy(chunk):
    (hidden, head, target, weight), (other, other_head, _, _) = inputs(), inputs(seed=1)

    def ours(hidden, head):
        return nll_sum(hidden, head, target, weight, chunk, SoftTargets(other, other_head, 0.3))

    def theirs(hidden, head):
        soft = -(jax.nn.softmax(other @ other_head.T) * jax.nn.log_softmax(hidden @ head.T)).sum(-1)
        return ((0.7 * dense(hidden, head, target) + 0.3 * soft) * weight).sum()

    np.testing.assert_allclose(ours(hidden, head), theirs(hidden, head), rtol=1e-5)
    both = (jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(hidden, head) for function in (ours, theirs))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_head_that_is_not_trained_changes_no_other_gradient():
    hidden, head, target, weight = inputs()
    alone, (both, _) = (
        jax.jit(jax.grad(nll_sum, argnums=which), static_argnums=4)(hidden, head, target, weight, 4) for which in (0, (0, 1))
    )
    np.testing.assert_array_equal(alone, both)


def test_a_row_of_weight_zero_counts_for_nothing():
    hidden, head, target, weight = inputs()
    gradient = jax.jit(jax.grad(nll_sum), static_argnums=4)(hidden, head, target, weight, 4)
    assert (np.asarray(gradient)[weight == 0] == 0).all()
    assert (np.asarray(gradient)[weight > 0] != 0).any(-1).all()
    value, gradients = jax.jit(jax.value_and_grad(nll_sum, argnums=(0, 1)), static_argnums=4)(
        hidden, head, target, np.zeros_like(weight), 4
    )
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in gradients)


@pytest.mark.parametrize("number", [-1, V, 10**6])
def test_a_target_that_is_no_token_makes_no_loss(number):
    hidden, head, target, weight = inputs()
    target[1, 3], weight[1, 3] = number, 1
    value, _ = jax.jit(jax.value_and_grad(nll_sum), static_argnums=4)(hidden, head, target, weight, 4)
    assert np.isnan(value)
    assert np.isnan(token_nll(hidden, head, target, 4)).sum() == 1


def test_chunks_of_rows_that_do_not_count_are_not_computed():
    """What is not computed cannot spoil the sums: rows without weight hold NaN, and those with weight fill whole chunks."""
    hidden, head, target, _ = (x[:, :8] if x.ndim > 1 and x.shape[1] == L else x for x in inputs())
    weight = np.array([[1, 0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 0, 1]], np.float32)
    spoilt = np.where(weight[..., None] > 0, hidden, np.nan)
    ours = jax.jit(jax.value_and_grad(nll_sum, argnums=(0, 1)), static_argnums=4)(spoilt, head, target, weight, 4 * B)
    theirs = jax.jit(jax.value_and_grad(lambda h, w: (dense(h, w, target) * weight).sum(), argnums=(0, 1)))(hidden, head)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_value_without_differentiation_is_the_same():
    hidden, head, target, weight = inputs()
    value, _ = jax.jit(jax.value_and_grad(nll_sum), static_argnums=4)(hidden, head, target, weight, 4)
    np.testing.assert_allclose(nll_sum(hidden, head, target, weight, 4), value, rtol=1e-6)


def test_bfloat16_hidden_states_accumulate_the_head_in_float32():
    hidden, head, target, weight = inputs()
    rough = jnp.asarray(hidden, jnp.bfloat16)
    d_hidden, d_head = jax.jit(jax.grad(nll_sum, argnums=(0, 1)), static_argnums=4)(rough, head, target, weight, 4)
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    exact = jax.grad(lambda w: (dense(hidden, w, target) * weight).sum())(head)
    np.testing.assert_allclose(d_head, exact, atol=0.02 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("function", [nll_sum, lambda h, w, t, *rest: token_nll(h, w, t, rest[-1]).sum()])
def test_logits_never_exist_for_more_than_a_chunk_of_rows(function):
    batch, length, width, vocab, chunk = 2, 512, 16, 4096, 64
    hidden, head = jnp.zeros((batch, length, width)), jnp.zeros((vocab, width))
    target, weight = jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length))
    run = (
        jax.value_and_grad(lambda h, w: function(h, w, target, weight, chunk), argnums=(0, 1))
        if function is nll_sum
        else (lambda h, w: function(h, w, target, weight, chunk))
    )
    sizes = [int(np.prod(shape)) for shape in _shapes(jax.make_jaxpr(run)(hidden, head).jaxpr)]
    assert max(sizes) == chunk * vocab


def _shapes(jaxpr):
    """Shapes of everything that a program computes, loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes(inner)
