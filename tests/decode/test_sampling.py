"""Sampling against numpy: what top-k and top-p keep, how often each token comes, and what is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.decode.sampling import Sampling, checked, kept, sample
from a3jax.errors import UserError

V = 12
logits = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=V, max_size=V)
keep_of = jax.jit(kept)
draw = jax.jit(sample)
EVERY = np.ones(V, bool)


def by_the_book(row, top_k, top_p):
    """Walk down from the most probable token; of equals the lower id first."""
    ranked = sorted(range(V), key=lambda i: (-row[i], i))[: top_k or V]
    total = sum(np.exp(row[i]) for i in ranked)
    keep, reached = [], 0.0
    for i in ranked:
        if reached >= top_p and top_p < 1:
            break
        keep.append(i)
        reached += np.exp(row[i]) / total
    return {*keep}


@settings(max_examples=300, deadline=None)
@given(logits, st.integers(0, V + 2), st.floats(0.01, 1.0))
def test_kept_tokens(row, top_k, top_p):
    found = {*np.flatnonzero(keep_of(np.array(row, np.float32), checked(1.0, top_k, top_p)))}
    # A sum that meets top-p to within rounding may fall on either side.
    assert found in [by_the_book(row, top_k, top_p * (1 + e)) for e in (0, -1e-5, 1e-5)]
    assert found


def frequencies(row, sampling, allowed=EVERY, draws=40_000):
    keys = jax.random.split(jax.random.key(0), (1, draws))
    token, log_prob = draw(keys, jnp.broadcast_to(row, (1, draws, V)), sampling, allowed)
    return np.bincount(np.asarray(token)[0], minlength=V) / draws, np.asarray(token)[0], np.asarray(log_prob)[0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6), (0.7, 6, 0.8), (1.0, 1, 1.0)],
)
def test_frequencies_match_the_filtered_softmax(temperature, top_k, top_p):
    row = np.random.default_rng(0).normal(size=V).astype(np.float32)
    allowed = np.arange(V) != row.argmax()
    sharp = np.where(allowed, row / temperature, -np.inf)
    keep = np.isin(np.arange(V), [*by_the_book(sharp, top_k, top_p)])
    expected = np.where(keep, np.exp(sharp), 0)
    expected /= expected.sum()
    found, token, log_prob = frequencies(row, checked(temperature, top_k, top_p), allowed)
    # Five standard deviations of a count out of 40,000.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 40_000) + 1e-9).all()
    model = row - np.log(np.exp(row).sum())  # its own distribution: nothing filtered, nothing forbidden
    np.testing.assert_allclose(log_prob, model[token], atol=1e-5)


def test_cold_is_greedy():
    row = np.random.default_rng(1).normal(size=V).astype(np.float32)
    for temperature in (0.0, 1e-37, 1e-3):
        found, *_ = frequencies(row, checked(temperature, 0, 1.0), draws=50)
        assert found[row.argmax()] == 1
        found, *_ = frequencies(row, checked(temperature, 5, 0.9), EVERY & (np.arange(V) != row.argmax()), draws=50)
        assert found[np.argsort(row)[-2]] == 1


def test_settings_compile_nothing():
    row = np.zeros(V, np.float32)
    frequencies(row, checked(1.0, 0, 1.0), draws=10)
    before = draw._cache_size()
    for settings_ in [(0, 0, 1), (0.3, 5, 0.2), (2, 1, 1.0)]:
        frequencies(row, checked(*settings_), draws=10)
    assert draw._cache_size() == before


def test_half_precision_logits_are_scored_in_single():
    row = np.random.default_rng(2).normal(size=V).astype(jnp.bfloat16)
    *_, log_prob = frequencies(row, Sampling(), draws=3)
    assert log_prob.dtype == np.float32
    exact = row.astype(np.float64)
    np.testing.assert_allclose(log_prob, exact.max() - np.log(np.exp(exact).sum()), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((-0.1, 0, 1.0), "temperature is -0.1"),
        ((float("nan"), 0, 1.0), "temperature is nan"),
        ((float("inf"), 0, 1.0), "temperature is inf"),
        ((1.0, -1, 1.0), "top-k is -1"),
        ((1.0, 2**40, 1.0), "top-k is"),
        ((1.0, 0, 0.0), "top-p is 0.0"),
        ((1.0, 0, 1.5), "top-p is 1.5"),
        ((1.0, 0, float("nan")), "top-p is nan"),
    ],
)
def test_bad_values(values, complaint):
    with pytest.raises(UserError, match=complaint):
        checked(*values)
