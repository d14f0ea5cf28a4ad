"""With query adapters the source model drafts for itself: from left to right, speculative decoding is the source model in
transformers, whatever the adapters are."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from filling import document, fill
from flax import nnx
from scipy.stats import chisquare
from small_models import load
from test_speculative import sample

from a3jax.checkpoint.folder import load_params

DRAFTS = 3


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request, pretrained, imported, network):
    """A source model in transformers, and here with random adapters of its query stream."""
    checkpoint = imported(request.param)
    net = network(dataclasses.replace(checkpoint.config, adapter_rank=3))
    nnx.update(net, load_params(checkpoint))
    return load(pretrained(request.param)), net


@pytest.mark.long
def test_greedy_tokens_are_those_of_the_source_in_transformers(pair, without_adapters):
    source, net = pair
    new, words = 60, 8  # few words, so that drafts of a random model stand too
    never = [*range(words, net.config.vocab)]
    prompts = [document([given, new], vocab=words, seed=given) for given in (5, 11, 30)]
    allowed = np.arange(net.config.vocab) < words
    _, filled = fill(net, prompts, "ar", allowed, mode="speculative", drafts=DRAFTS)
    for (tokens, given), filled_L, log_prob_L, passes_L in zip(prompts, *filled):
        prompt, end = torch.tensor([tokens])[:, : sum(given)], len(tokens)
        how = {"do_sample": False, "suppress_tokens": never, "eos_token_id": None, "pad_token_id": 0}
        expected = source.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, **how)[0]
        np.testing.assert_array_equal(filled_L[:end], expected)
        with torch.no_grad():
            logits = source(expected[None]).logits[0, sum(given) - 1 : -1]
        nats = logits.log_softmax(-1).gather(1, expected[sum(given) :, None])[:, 0]
        np.testing.assert_allclose(log_prob_L[sum(given) : end], nats, atol=1e-4)
        assert passes_L.max() < 0.9 * new
    # The adapters are nothing to these tokens, and not because they do nothing.
    others = [fill(one, prompts, "in_order_4")[1].tokens_BxL for one in (net, without_adapters(net))]
    assert (others[0] != others[1]).mean() > 0.1


@pytest.mark.long
def test_samples_have_the_distribution_of_the_source_in_transformers(pair):
    """All texts of four of the vocabulary's first four tokens, against their exact probabilities under the source."""
    source, net = pair
    tokens, given = document([5, 4], vocab=256, seed=2)
    texts = np.array([*itertools.product(range(4), repeat=4)])
    whole = torch.from_numpy(np.concatenate([np.tile(tokens[:5], (len(texts), 1)), texts], axis=1))
    with torch.no_grad():
        log_probs = source(whole).logits[:, 4:-1, :4].log_softmax(-1)
    probability = log_probs.gather(2, whole[:, 5:, None]).sum((1, 2)).exp().numpy().astype(np.float64)
    assert probability.sum() == pytest.approx(1, abs=1e-4)

    filled = [
        sample(net, (tokens, given), "ar", 0, noise, np.arange(300) < 4, mode="speculative", drafts=DRAFTS, temperature=1.0)
        for noise in range(2)
    ]
    drawn = np.concatenate([one.tokens_BxL[:, 5:9] for one in filled])
    counts = np.bincount(drawn @ (4 ** np.arange(4)[::-1]), minlength=len(texts))
    often = probability * len(drawn) >= 5  # the rest together, as a chi-squared test wants it
    observed, expected = (
        np.append(x[often], x[~often].sum()) for x in (counts, probability / probability.sum() * len(drawn))
    )
    keep = expected > 0
    p_value = chisquare(observed[keep], expected[keep]).pvalue
    saved = np.mean([one.passes_BxL.max(axis=1) < 4 for one in filled])
    print(f"p = {p_value:.3f}, {saved:.0%} in fewer passes than tokens")
    assert p_value > 1e-3
    assert saved > 0.2
