"""Sampling against numpy: what top-k and top-p keep, how often each token comes, and what is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.decode.sampling import choices, draw, kept, log_prob, sampling_of
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError

V = 12
logits = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=V, max_size=V)
keep_of = jax.jit(kept)
EVERY = np.ones(V, bool)
FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


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


@settings(max_examples=300)
@given(logits, st.integers(0, V + 2), st.floats(0.01, 1.0))
def test_kept_tokens(row, top_k, top_p):
    found = {*np.flatnonzero(keep_of(np.array(row, np.float32), top_k, np.float32(top_p)))}
    # A sum that meets top-p to within rounding may fall on either side.
    assert found in [by_the_book(row, top_k, top_p * (1 + e)) for e in (0, -1e-5, 1e-5)]
    assert found


@jax.jit
def sample(keys_BxS, logits_BxSxV, sampling, allowed_BxV, seen_BxSxV):
    token_BxS = draw(keys_BxS, choices(logits_BxSxV, sampling, allowed_BxV, seen_BxSxV), sampling)
    return token_BxS, log_prob(logits_BxSxV, token_BxS)


def frequencies(row, decoding, allowed=EVERY, draws=40_000, seen=~EVERY):
    keys = jax.random.split(jax.random.key(0), (1, draws))
    rows = jnp.broadcast_to(row, (1, draws, V))
    token, log_probs = sample(keys, rows, sampling_of([decoding]), allowed[None], seen[None, None])
    return np.bincount(np.asarray(token)[0], minlength=V) / draws, np.asarray(token)[0], np.asarray(log_probs)[0]


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
    found, token, log_probs = frequencies(row, Decoding(temperature=temperature, top_k=top_k, top_p=top_p), allowed)
    # Five standard deviations of a count out of 40,000.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 40_000) + 1e-9).all()
    model = row - np.log(np.exp(row).sum())  # its own distribution: nothing filtered, nothing forbidden
    np.testing.assert_allclose(log_probs, model[token], atol=1e-5)


@pytest.mark.parametrize(("min_p", "penalty"), [(0.3, 1.0), (0.0, 1.7), (0.2, 0.6)])
def test_min_p_and_penalty_as_transformers_has_them(min_p, penalty):
    torch, logits_process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    row = np.random.default_rng(3).normal(size=V).astype(np.float32)
    seen = np.arange(V) % 3 == 0
    text = torch.tensor(np.flatnonzero(seen))[None]
    scores = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(text, torch.tensor(row)[None])
    scores = logits_process.TemperatureLogitsWarper(0.8)(text, scores)
    if min_p:
        scores = logits_process.MinPLogitsWarper(min_p)(text, scores)
    sampling = sampling_of([Decoding(temperature=0.8, min_p=min_p, repetition_penalty=penalty)])
    ours = jax.nn.softmax(choices(jnp.asarray(row)[None, None], sampling, EVERY[None], seen[None, None]))[0, 0]
    np.testing.assert_allclose(ours, torch.softmax(scores, -1)[0], atol=1e-6)


def test_a_batch_has_settings_of_its_own():
    row = np.random.default_rng(4).normal(size=V).astype(np.float32)
    each = [Decoding(), Decoding(temperature=1.0, top_k=2), Decoding(temperature=0.5, top_p=0.5), Decoding(temperature=2.0)]
    rows, seen = jnp.broadcast_to(row, (4, 1, V)), jnp.zeros((1, 1, V), bool)
    together = choices(rows, sampling_of(each), EVERY[None], seen)
    for i, one in enumerate(each):
        alone = choices(rows[i : i + 1], sampling_of([one]), EVERY[None], seen)
        np.testing.assert_array_equal(together[i], alone[0])


def test_cold_is_greedy():
    row = np.random.default_rng(1).normal(size=V).astype(np.float32)
    for temperature in (0.0, 1e-37, 1e-3):
        found, *_ = frequencies(row, Decoding(temperature=temperature), draws=50)
        assert found[row.argmax()] == 1
        filtered = Decoding(temperature=temperature, top_k=5, top_p=0.9)
        found, *_ = frequencies(row, filtered, EVERY & (np.arange(V) != row.argmax()), draws=50)
        assert found[np.argsort(row)[-2]] == 1


def test_settings_compile_nothing():
    row = np.zeros(V, np.float32)
    frequencies(row, Decoding(temperature=1.0), draws=10)
    before = sample._cache_size()
    for values in [(0, 0, 1, 0, 1), (0.3, 5, 0.2, 0.1, 2), (2, 1, 1.0, 0.5, 0.5)]:
        frequencies(row, Decoding(**dict(zip(FIELDS, values))), draws=10)
    assert sample._cache_size() == before


def test_half_precision_logits_are_scored_in_single():
    row = np.random.default_rng(2).normal(size=V).astype(jnp.bfloat16)
    *_, log_probs = frequencies(row, Decoding(), draws=3)
    assert log_probs.dtype == np.float32
    exact = row.astype(np.float64)
    np.testing.assert_allclose(log_probs, exact.max() - np.log(np.exp(exact).sum()), atol=1e-6)


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
        ((1.0, 0, 1.0, 1.0), "min-p is 1.0"),
        ((1.0, 0, 1.0, -0.1), "min-p is -0.1"),
        ((1.0, 0, 1.0, 0.0, 0.0), "repetition-penalty is 0.0"),
        ((1.0, 0, 1.0, 0.0, float("inf")), "repetition-penalty is inf"),
    ],
)
def test_bad_values(values, complaint):
    with pytest.raises(UserError, match=complaint):
        Decoding(**dict(zip(FIELDS, values)))
