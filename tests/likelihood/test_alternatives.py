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
