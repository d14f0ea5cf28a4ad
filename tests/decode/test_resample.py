"""Reading everything anew in every pass: against dense masks in float64, enumeration, and teacher forcing pass by pass."""

import itertools

import brute_force
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from filling import document, fill
from flax import nnx

import a3jax
from a3jax.decode import resample
from a3jax.decode.settings import Decoding

DOCUMENT = document([3, 7, 4, 2, 5, 6, 2])


def distribution(logits_V, temperature=0.0, top_k=0, top_p=1.0, **_):
    """What tokens are drawn from, with the filters of the authors' code; without temperature, at temperature 1."""
    logits_V = logits_V / (temperature or 1.0)
    if top_k:
        logits_V = np.where(logits_V < np.sort(logits_V)[-top_k], -np.inf, logits_V)
    probability_V = np.exp(brute_force.log_softmax(logits_V))
    if top_p < 1:
        by_rank = np.argsort(-probability_V)
        beyond = np.cumsum(probability_V[by_rank]) > top_p
        probability_V[by_rank[1:][beyond[:-1]]] = 0
    return probability_V / probability_V.sum()


def score(probability_V, certainty):
    """What a place is chosen by."""
    if certainty == "confidence":
        return probability_V.max()
    some = probability_V[probability_V > 0]
    return (some * np.log(some)).sum()  # the negative entropy


@pytest.mark.parametrize(
    ("certainty", "commit", "options", "shape"),
    long_after(
        2,
        [
            ("entropy", 3, {"temperature": 1.3, "top_p": 0.8}, {"seeding": "learned"}),
            ("confidence", 3, {"temperature": 0.7, "top_k": 9}, {}),
            ("confidence", 3, {}, {}),
            ("confidence", 4, {"top_p": 0.5}, {"seeding": "two_sided"}),
            ("entropy", 1, {}, {"adapter_rank": 3}),
        ],
    ),
)
def test_every_pass_equals_recomputation_with_dense_masks(certainty, commit, options, shape, tiny, network):
    """Passes are told by what they decided: each must have decided the best `commit` places, with likely tokens."""
    net = network(tiny(layers=2, **shape))
    tokens, given = DOCUMENT
    _, filled = fill(net, [DOCUMENT], "ar", mode="resample", certainty=certainty, commit=commit, **options)
    found, log_probs, passes = (x_BxL[0, : len(tokens)] for x_BxL in filled)
    np.testing.assert_array_equal(passes == 0, given)
    np.testing.assert_array_equal(found[given], np.array(tokens)[given])
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    for number in range(1, passes.max() + 1):
        open_, chosen = np.flatnonzero(passes >= number), np.flatnonzero(passes == number)
        known = np.where(passes < number, found, 0)
        _, logits = brute_force.two_streams(net.config, params, known, (passes >= number) * 1, np.ones(len(tokens), int))
        drawn = np.stack([distribution(logits[place], **options) for place in range(len(tokens))])
        scores = [score(drawn[place], certainty) for place in open_]
        best = open_[np.argsort(-np.array(scores), kind="stable")[:commit]]
        np.testing.assert_array_equal(np.sort(best), chosen)
        np.testing.assert_allclose(log_probs[chosen], brute_force.log_softmax(logits)[chosen, found[chosen]], atol=1e-4)
        assert (drawn[chosen, found[chosen]] > 0).all()
        if not options.get("temperature"):
            np.testing.assert_array_equal(found[chosen], logits[chosen].argmax(-1))


@pytest.mark.parametrize("certainty", long_after(2, ["random", "entropy", "confidence", "margin"]))
def test_so_many_places_are_decided_in_every_pass_and_given_tokens_stay(certainty, tiny, network):
    net = network(tiny(layers=2))
    documents = [document(n) for n in ([5, 11, 3], [1, 20], [2, 13, 9])]
    options = {"mode": "resample", "certainty": certainty, "commit": 4, "temperature": 1.0}
    _, batch = fill(net, documents, "ar", seed=5, **options)
    for i, (tokens, given) in enumerate(documents):
        filled_L, passes_L = batch.tokens_BxL[i, : len(tokens)], batch.passes_BxL[i, : len(tokens)]
        np.testing.assert_array_equal(filled_L[given], np.array(tokens)[given])
        np.testing.assert_array_equal(passes_L == 0, given)
        sizes = np.bincount(passes_L[passes_L > 0])[1:]
        assert (sizes[:-1] == 4).all()
        assert 1 <= sizes[-1] <= 4
        _, alone = fill(net, [documents[i]], "ar", seed=5 + i, **options)
        np.testing.assert_array_equal(batch.tokens_BxL[i], alone.tokens_BxL[0])
        np.testing.assert_array_equal(batch.passes_BxL[i], alone.passes_BxL[0])


@pytest.mark.parametrize("certainty", ["confidence", "entropy"])
def test_probabilities_of_all_texts_add_up(certainty, tiny, network, monkeypatch):
    """Every text that three blanks of a vocabulary of five can hold, decoded as if it had been drawn."""
    net = network(tiny(layers=2, vocab=5))
    texts = np.array(list(itertools.product(range(5), repeat=3)))
    documents = [([1, 0, 2, 0, 0], [True, False, True, False, False])] * len(texts)
    target_BxL = jnp.zeros((len(texts), 32), jnp.int32).at[:, jnp.array([1, 3, 4])].set(texts)
    monkeypatch.setattr(resample, "place_keys", lambda keys_B, place_BxS: place_BxS)
    monkeypatch.setattr(resample, "draw", lambda place_BxS, *_: jnp.take_along_axis(target_BxL, place_BxS, 1, mode="clip"))
    resample.decode_anew.clear_cache()
    _, filled = fill(net, documents, "ar", mode="resample", temperature=1.0, certainty=certainty, commit=1)
    resample.decode_anew.clear_cache()
    np.testing.assert_array_equal(filled.tokens_BxL[:, [1, 3, 4]], texts)
    assert len(np.unique(filled.passes_BxL, axis=0)) > 1, "the order depends on the text"
    assert np.exp(filled.log_probs_BxL.sum(1)).sum() == pytest.approx(1, abs=1e-4)


def test_nothing_is_compiled_twice(tiny, network):
    net = network(tiny(layers=2))
    fill(net, [document([4, 9, 3])], "ar", mode="resample")
    before = resample.decode_anew._cache_size()
    for i in range(3):
        lengths = [2 + i, 5, 1, 6 - i]
        fill(net, [document(lengths)], "ar", seed=i, mode="resample", temperature=0.5 * i, top_k=i, top_p=1 - 0.1 * i)
    assert resample.decode_anew._cache_size() == before


def test_log_probs_are_those_of_its_passes_and_of_no_single_one(model):
    """Each pass is a teacher-forced one whose given tokens are all that was decided before it, as one group."""
    filled = a3jax.infill(model, "def area(r): [[5]] * r  # [[4]]", seed=3, temperature=1.0, mode="resample", commit=2)
    passes, own = np.array(filled.passes), np.array(filled.log_probs)
    for number in range(1, passes.max() + 1):
        given, chosen = passes < number, passes == number
        score = a3jax.token_log_likelihood(model, filled.tokens, given, groups=passes, prefill="group")
        by_place = np.zeros(len(passes))
        by_place[~given] = score.log_probs
        np.testing.assert_allclose(own[chosen], by_place[chosen], atol=1e-4)
    at_once = a3jax.token_log_likelihood(model, filled.tokens, filled.given, groups=passes, prefill="group")
    assert abs(at_once.total - filled.log_prob) > 1e-3


def test_a_text_that_may_end_stops_once_all_before_its_end_is_decided(model):
    how = {"tokens": 24, "temperature": 1.0, "seed": 3, "mode": "resample", "commit": 4}
    long = a3jax.complete(model, ["def area(r): "], **how)[0]
    stop = long.blanks[0].text[5:7]
    short = a3jax.complete(model, ["def area(r): "], stop=(stop,), **how)[0]
    assert (short.finished, short.tokens) == ("stop", long.tokens[: len(short.tokens)])


def test_its_options():
    assert Decoding(mode="resample").program == ("resample", 1, "ar", 0, "confidence", 8)
    assert Decoding(mode="resample", commit=64, certainty="random").commit == 64
    for options, complaint in {
        (("window", 4),): "window belongs to mode dynamic, and the mode is resample",
        (("threshold", 0.5),): "threshold belongs to mode dynamic, and the mode is resample",
        (("order", "random_4"),): "mode resample finds its own order",
    }.items():
        with pytest.raises(a3jax.errors.UserError, match=complaint):
            Decoding(mode="resample", **dict(options))
    with pytest.raises(a3jax.errors.UserError, match="commit belongs to mode dynamic and resample, and the mode is groups"):
        Decoding(commit=2)
