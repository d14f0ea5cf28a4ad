"""What else was likely, against transformers; and the same from a learned seed, against what a text's likelihood is."""

import dataclasses

import numpy as np
import pytest
from pretrained_models import imported, pretrained  # noqa: F401
from small_models import tokens, torch_logits

import a3jax
from a3jax.errors import UserError
from a3jax.likelihood.alternatives import alternatives


def test_the_most_probable_tokens_are_those_of_transformers(pretrained, imported):  # noqa: F811
    ids = tokens(40)[:1]
    logits = torch_logits(pretrained("llama"), ids)[0, :-1].astype(np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = alternatives(a3jax.load(str(imported("llama").folder)), ids[0].tolist(), 4)
    best = np.argsort(-log_prob, axis=-1)[:, :4]
    np.testing.assert_array_equal(found.likeliest_TxK[1:], best)
    np.testing.assert_allclose(found.log_probs_TxK[1:], np.take_along_axis(log_prob, best, -1), atol=1e-4)
    np.testing.assert_allclose(found.log_probs_T[1:], log_prob[np.arange(39), ids[0, 1:]], atol=1e-4)
    assert not found.log_probs_TxK[0].any()


def test_learned_seeds_and_texts_too_long(model):
    learned = dataclasses.replace(model, config=dataclasses.replace(model.config, seeding="learned"))
    text = "Once upon a time"
    expected = a3jax.log_likelihood(learned, text)
    found = alternatives(learned, [learned.codec.start, *learned.codec.encode(text)], 2)
    np.testing.assert_allclose(found.log_probs_T[1:], expected.log_probs, atol=1e-5)
    with pytest.raises(UserError, match="context only 64"):
        alternatives(model, [1] * 65, 2)


def test_logits_are_bent_where_the_model_bends_them(model):
    bent = dataclasses.replace(model, config=dataclasses.replace(model.config, logit_cap=0.5))
    text = "Once upon a time"
    expected, straight = a3jax.log_likelihood(bent, text), a3jax.log_likelihood(model, text)
    found = alternatives(bent, [bent.codec.start, *bent.codec.encode(text)], 2)
    np.testing.assert_allclose(found.log_probs_T[1:], expected.log_probs, atol=1e-5)
    assert abs(expected.total - straight.total) > 0.1


def test_of_a_place_where_few_tokens_may_stand_those_alone_are_told(model):
    """Their probabilities are those of all, divided by their sum; behind them nothing is left."""
    tokens, few_V = [model.codec.start, *model.codec.encode("Once upon")], np.zeros(model.config.vocab, bool)
    few_V[[tokens[4], 97, 98]] = True
    free = alternatives(model, tokens, model.config.vocab)
    found = alternatives(model, tokens, model.config.vocab, {4: few_V})
    log_prob_V = np.empty(model.config.vocab)
    log_prob_V[free.likeliest_TxK[4]] = free.log_probs_TxK[4]
    among = log_prob_V[few_V] - np.logaddexp.reduce(log_prob_V[few_V])
    np.testing.assert_allclose(found.log_probs_TxK[4, :3], np.sort(among)[::-1], atol=1e-5)
    assert set(found.likeliest_TxK[4, :3]) == {*np.flatnonzero(few_V)}
    assert np.isneginf(found.log_probs_TxK[4, 3:]).all()
    others = [place for place in range(len(tokens)) if place != 4]
    np.testing.assert_array_equal(found.log_probs_TxK[others], free.log_probs_TxK[others])
