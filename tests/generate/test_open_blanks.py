"""Blanks of unknown length: what is predicted when, where it stands, and where it ends."""

import brute_force
import jax
import numpy as np
import pytest
from flax import nnx

import a3jax


@pytest.fixture(scope="module")
def model(worded):
    """A random model that is said to know ends."""
    import dataclasses

    return dataclasses.replace(worded, record=dataclasses.replace(worded.record, blanks_end=True))


def greedy_by_the_book(model, before, after, gap):
    """Tokens and log-probabilities of one blank, with every mask in full, and what follows at places of its own."""
    params, end = nnx.to_pure_dict(model.params), {*model.config.end_tokens, *([model.codec.end] if model.codec.end else [])}
    allowed = np.array(model.fillable) | np.isin(np.arange(model.config.vocab), list(end))
    tokens = np.array([*before, *[0] * gap, *after])
    place, first = np.arange(len(tokens)), len(before)
    # What is given comes first, the blank's places one by one, and those not reached yet after everything.
    groups = np.where((place >= first) & (place < first + gap), len(tokens) + place, place)
    found, log_probs = [], []
    for i in range(gap):
        logits = brute_force.two_streams(model.config, params, tokens, groups, np.ones(len(tokens), int))[1][first + i]
        token = int(np.argmax(np.where(allowed, logits, -np.inf)))
        if token in end:
            break
        found.append(token)
        log_probs.append(brute_force.log_softmax(logits)[token])
        tokens[first + i] = token
    return found, log_probs


@pytest.mark.parametrize("order", ["ar", "in_order_1"])
def test_a_blank_is_filled_to_its_end_and_what_follows_stands_behind_the_gap(model, order):
    """The random model seldom ends, so its end token is made likely."""
    before, gap, after = "ab", 7, "cd"
    for seed in range(3):
        likelier = _likelier(model, seed)
        filled = a3jax.infill(likelier, f"{before}[[..{gap}]]{after}", order=order)
        codec = model.codec
        head = [] if codec.start is None else [codec.start]
        known = [*head, *codec.encode(before)], codec.encode(after, inside=True)
        tokens, log_probs = greedy_by_the_book(likelier, *known, gap)
        assert list(filled.blanks[0].tokens) == tokens
        np.testing.assert_allclose(filled.blanks[0].log_prob, sum(log_probs), atol=1e-4)
        assert filled.finished == ("stop" if len(tokens) < gap else "length")
        assert list(filled.tokens) == [*known[0], *tokens, *known[1]]
        assert filled.text.startswith(before)
        assert filled.text.endswith(after)


def _likelier(model, seed):
    """The model with an output for its end token that is large now and then."""
    params = nnx.to_pure_dict(model.params)
    head = "embedding" if model.config.tied_head else "head"
    end = model.config.end_tokens[0]
    matrix = np.array(params[head])
    matrix[end] = 3.0 * np.random.default_rng(seed).normal(size=matrix.shape[1])
    state = jax.tree.map(lambda x: x, model.params)
    nnx.replace_by_pure_dict(state, {**params, head: jax.numpy.asarray(matrix)})
    import dataclasses

    return dataclasses.replace(model, params=state)
