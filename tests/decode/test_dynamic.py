"""Deciding the most certain places first: against recomputation from scratch, and against teacher forcing."""

import itertools

import brute_force
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from filling import document, fill, teacher_forced
from flax import nnx

from a3jax.decode import choosing, dynamic
from a3jax.decode.settings import Decoding


def by_hand(net, tokens, given, certainty, threshold, commit, window):
    """Greedy tokens and the pass that decided each, recomputing everything in every pass."""
    config, params = net.config, nnx.to_pure_dict(nnx.state(net, nnx.Param))
    tokens, passes = np.array(tokens), np.where(given, 0, -1)
    known = np.cumsum(given)  # given tokens are groups of one
    for number in range(1, len(tokens) + 1):
        open_ = np.flatnonzero(passes < 0)[:window]
        if not len(open_):
            return tokens, passes
        groups = np.where(given, known, np.where(passes > 0, len(tokens) + passes, 10_000))
        _, logits = brute_force.two_streams(config, params, tokens, groups, np.ones(len(tokens), int))
        probability = np.exp(brute_force.log_softmax(logits))[open_]
        ranked = np.sort(probability, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(probability * np.log(probability), axis=1)
        sure = {
            "confidence": ranked[:, -1],
            "entropy": np.exp(-entropy),
            "margin": ranked[:, -1] - ranked[:, -2],
        }[certainty]
        best = np.argsort(-sure, kind="stable")[:commit]
        chosen = open_[[i for i in best if sure[i] >= threshold] or [0]]
        tokens[chosen], passes[chosen] = logits[chosen].argmax(-1), number
    raise AssertionError("more passes than tokens")


@pytest.mark.parametrize(
    ("certainty", "threshold", "commit", "window"),
    long_after(2, [("confidence", 0.0, 3, 5), ("entropy", 0.08, 4, 6), ("margin", 0.05, 8, 32), ("confidence", 0.15, 3, 32)]),
)
def test_greedy_choices_equal_recomputation_without_a_cache(certainty, threshold, commit, window, tiny, network):
    net = network(tiny(layers=2))
    tokens, given = document([3, 7, 4, 2, 5, 6, 2])
    options = {"certainty": certainty, "threshold": threshold, "commit": commit, "window": window}
    _, filled = fill(net, [(tokens, given)], "ar", mode="dynamic", **options)
    expected, passes = by_hand(net, tokens, given, **options)
    np.testing.assert_array_equal(filled.passes_BxL[0, : len(tokens)], passes)
    np.testing.assert_array_equal(filled.tokens_BxL[0, : len(tokens)], expected)
    sizes = np.bincount(passes[passes > 0])[1:]
    assert sizes.max() <= commit
    assert threshold == 0 or len({*sizes}) > 1  # the threshold did decide


@pytest.mark.parametrize(
    ("certainty", "changes"),
    long_after(
        2,
        [
            *(
                ("confidence", {}),
                ("entropy", {"seeding": "learned"}),
                ("random", {}),
                ("confidence", {"content": "slot", "seeding": "two_sided"}),
            ),
            *(("confidence", {"seeding": "learned"}), ("entropy", {}), ("random", {"seeding": "learned"})),
            *(("margin", {}), ("margin", {"seeding": "learned"})),
        ],
    ),
)
def test_chain_rule(certainty, changes, tiny, network):
    net = network(tiny(layers=2, context=256, **changes))
    documents = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40], [2, 13, 49], [120, 9, 30, 14, 3])]
    options = {"certainty": certainty, "threshold": 0.0 if certainty == "random" else 0.2, "commit": 4}
    _, filled = fill(net, documents, "ar", mode="dynamic", seed=1, temperature=1.0, **options)
    np.testing.assert_allclose(filled.log_probs_BxL, teacher_forced(net, documents, filled), atol=1e-4)
    for (tokens, given), filled_L, passes_L in zip(documents, filled.tokens_BxL, filled.passes_BxL):
        here = np.flatnonzero(~np.array(given))
        np.testing.assert_array_equal(np.delete(filled_L[: len(tokens)], here), np.delete(tokens, here))
        np.testing.assert_array_equal(np.flatnonzero(passes_L > 0), here)


@pytest.mark.parametrize("certainty", long_after(1, ["entropy", "margin", "confidence"]))
def test_probabilities_of_all_texts_add_up_unless_places_are_chosen_by_the_tokens_drawn(
    certainty, tiny, network, monkeypatch
):
    """Every text that three blanks of a vocabulary of five can hold, decoded as if it had been drawn."""
    net = network(tiny(layers=2, vocab=5))
    texts = np.array(list(itertools.product(range(5), repeat=3)))
    documents = [([1, 0, 2, 0, 0], [True, False, True, False, False])] * len(texts)
    target_BxL = jnp.zeros((len(texts), 64), jnp.int32).at[:, jnp.array([1, 3, 4])].set(texts)
    monkeypatch.setattr(choosing, "place_keys", lambda keys_B, place_BxW: place_BxW)
    monkeypatch.setattr(choosing, "draw", lambda place_BxW, *_: jnp.take_along_axis(target_BxL, place_BxW, 1, mode="clip"))
    dynamic.decode_certain.clear_cache()
    options = {"certainty": certainty, "threshold": 0.35, "commit": 2}
    _, filled = fill(net, documents, "ar", mode="dynamic", temperature=1.0, **options)
    dynamic.decode_certain.clear_cache()
    np.testing.assert_array_equal(filled.tokens_BxL[:, [1, 3, 4]], texts)
    assert len(np.unique(filled.passes_BxL, axis=0)) > 1, "the order depends on the text"
    total = np.exp(filled.log_probs_BxL.sum(1)).sum()
    assert total > 1.05 if certainty == "confidence" else total == pytest.approx(1, abs=1e-4)


def test_a_batch_gives_each_sequence_what_it_gets_alone(tiny, network):
    net = network(tiny(layers=2))
    documents = [document(n) for n in ([5, 11, 3], [1, 20], [2, 13, 9])]
    options = {"mode": "dynamic", "temperature": 1.0, "threshold": 0.2}
    _, batch = fill(net, documents, "ar", seed=5, **options)
    for i, one in enumerate(documents):
        _, alone = fill(net, [one], "ar", seed=5 + i, **options)
        np.testing.assert_array_equal(batch.tokens_BxL[i], alone.tokens_BxL[0])
        np.testing.assert_array_equal(batch.passes_BxL[i], alone.passes_BxL[0])


def test_nothing_is_compiled_twice(tiny, network):
    net = network(tiny(layers=2))
    fill(net, [document([4, 9, 3])], "ar", mode="dynamic")
    before = dynamic.decode_certain._cache_size()
    for i, threshold in enumerate([0.0, 0.3, 1.0]):
        fill(net, [document([2 + i, 5, 1, 6 - i])], "ar", seed=i, mode="dynamic", threshold=threshold, temperature=0.5 * i)
    assert dynamic.decode_certain._cache_size() == before


def test_chance_draws_other_places_in_every_pass(tiny, network):
    net = network(tiny(layers=2))
    how = {"mode": "dynamic", "certainty": "random", "threshold": 0.0, "commit": 1, "window": 2}
    ahead = []
    for seed in range(12):
        _, filled = fill(net, [document([1, 12])], "ar", seed=seed, **how)
        ahead += (np.diff(filled.passes_BxL[0, 1:13]) < 0).tolist()
    assert 0.2 < np.mean(ahead) < 0.7  # of two open places either may come first, wherever the window stands


def test_defaults():
    assert Decoding(mode="dynamic").program == ("dynamic", 1, "ar", 0, "confidence", 8, 32)
