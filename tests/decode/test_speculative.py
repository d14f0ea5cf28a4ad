"""Speculative decoding: the tokens of one-by-one decoding where it is greedy, and its distribution where it is not."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from filling import HOW, document, fill, log_probs
from hypothesis import given as given_that
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from a3jax.decode import speculative
from a3jax.decode.cached import Plan, State
from a3jax.decode.drafting import LOOKED_FOR, by_both, by_text, followed
from a3jax.decode.sampling import sampling_of
from a3jax.decode.settings import Decoding


@pytest.mark.parametrize(
    ("drafts", "order", "drafter"),
    long_after(
        3,
        [
            *((4, "ar", "both"), (4, "random_1", "both"), (4, "random_1", "text"), (4, "spans_1", "both")),
            *((1, "ar", "both"), (1, "random_1", "both"), (1, "spans_1", "both"), (4, "ar", "text"), (1, "ar", "text")),
        ],
    ),
)
def test_greedy_tokens_are_those_of_one_by_one_decoding(order, drafts, drafter, tiny, network):
    net = network(tiny(layers=2, context=256))
    documents = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40], [2, 13, 49], [120, 9, 30, 14, 3])]
    how = {"mode": "speculative", "drafts": drafts, "drafter": drafter}
    allowed = np.arange(net.config.vocab) % 5 > 0
    _, expected = fill(net, documents, order, allowed, seed=2)
    _, filled = fill(net, documents, order, allowed, seed=2, **how)
    np.testing.assert_array_equal(filled.tokens_BxL, expected.tokens_BxL)
    np.testing.assert_allclose(filled.log_probs_BxL, expected.log_probs_BxL, atol=1e-4)
    assert (filled.passes_BxL.max(axis=1) <= expected.passes_BxL.max(axis=1)).all()  # never more passes than tokens
    assert filled.passes_BxL.max() < expected.passes_BxL.max()


@pytest.mark.parametrize("drafter", ["both", "text"])
def test_from_left_to_right_the_rows_that_read_drafts_test_them(drafter, tiny, network):
    net = network(tiny(layers=2, context=256, adapter_rank=3))
    documents = [document(n) for n in ([5, 70], [1, 40], [90, 33], [0, 50])]
    drawn, expected = fill(net, documents, "ar")
    _, filled = fill(net, documents, "ar", mode="speculative", drafter=drafter)
    assert not drawn.extent.queries
    np.testing.assert_array_equal(filled.tokens_BxL, expected.tokens_BxL)
    np.testing.assert_allclose(filled.log_probs_BxL, expected.log_probs_BxL, atol=1e-4)
    assert filled.passes_BxL.max() < expected.passes_BxL.max()


def test_a_penalty_sees_the_drafts_before(tiny, network):
    net = network(tiny(layers=2, context=256))
    documents = [document([3, 60]), document([5, 9, 2, 20])]
    _, expected = fill(net, documents, "ar", repetition_penalty=1.3)
    _, filled = fill(net, documents, "ar", repetition_penalty=1.3, mode="speculative")
    np.testing.assert_array_equal(filled.tokens_BxL, expected.tokens_BxL)


@pytest.mark.parametrize(
    ("seeding", "order"),
    long_after(
        2,
        [
            ("two_sided", "random_1"),
            ("successor", "ar"),
            ("learned", "random_1"),
            ("successor", "random_1"),
            ("learned", "ar"),
        ],
    ),
)
def test_chain_rule(order, seeding, tiny, network):
    net = network(tiny(layers=2, seeding=seeding, context=256))
    documents = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40], [2, 13, 49])]
    drawn, filled = fill(net, documents, order, seed=1, mode="speculative", temperature=1.0)
    teacher = np.asarray(log_probs(net, jnp.asarray(filled.tokens_BxL), drawn.order, compute=HOW))
    np.testing.assert_allclose(filled.log_probs_BxL, teacher, atol=1e-4)
    for (tokens, given), filled_L in zip(documents, filled.tokens_BxL):
        here = np.flatnonzero(~np.array(given))
        np.testing.assert_array_equal(np.delete(filled_L[: len(tokens)], here), np.delete(tokens, here))


SAMPLES, ROUNDS = 2048, 4


@pytest.mark.parametrize(
    ("order", "drafts", "behind", "drafter", "options"),
    long_after(
        2,
        [
            ("ar", 2, [3], "both", {"top_k": 3, "repetition_penalty": 1.5}),
            ("ar", 2, [], "text", {}),
            ("ar", 3, [3], "both", {}),
            ("ar", 3, [], "both", {}),
            ("random_1", 2, [3], "both", {"temperature": 0.7}),
            ("random_1", 2, [3], "text", {}),
        ],
    ),
)
def test_samples_have_the_distribution_of_one_by_one_decoding(
    order, drafts, behind, drafter, options, tiny, network, record_property
):
    """All texts of four tokens from a vocabulary of four, against their exact probabilities."""
    net = network(tiny(layers=2, vocab=4))
    options = {"temperature": 1.0, **options}
    begins = [3, 3, 3, 3] if drafter == "text" else [0, 1, 2]  # which goes on as it has
    tokens, given = [*begins, 0, 0, *behind, 0, 0], [True] * len(begins) + [False] * 2 + [True] * len(behind) + [False] * 2
    blank = np.flatnonzero(~np.array(given))
    texts = np.array([*itertools.product(range(4), repeat=4)])
    seed = 7  # decides a random order, the same for all samples below
    probability = exact(net, tokens, given, blank, texts, order, seed, **options)
    assert probability.sum() == pytest.approx(1, abs=1e-4)

    counts = np.zeros(len(texts))
    saved = 0
    for i in range(ROUNDS):
        how = {"mode": "speculative", "drafts": drafts, "drafter": drafter, **options}
        filled = sample(net, (tokens, given), order, seed, 1000 + i, **how)
        index = filled.tokens_BxL[:, blank] @ (4 ** np.arange(4)[::-1])
        counts += np.bincount(index, minlength=len(texts))
        saved += (filled.passes_BxL.max(axis=1) < 4).sum()
    possible = probability > 0
    assert counts[~possible].sum() == 0
    often = possible & (probability * counts.sum() >= 5)  # the rest together, as a chi-squared test wants it
    observed = np.append(counts[often], counts[possible & ~often].sum())
    expected = np.append(probability[often], probability[possible & ~often].sum()) * counts.sum()
    keep = expected > 0
    p_value = chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue
    record_property("p_value", float(p_value))
    few = f"{saved / counts.sum():.0%} in fewer passes than tokens"
    print(f"{order}, {drafts} drafts of {drafter}, {options}: p = {p_value:.3f}, {few}")
    assert p_value > 1e-3
    assert saved > 0.2 * counts.sum()


def sample(net, one, order, seed, noise, allowed=None, **options):
    """Many samples of one document in one batch: the order of `seed`, each with noise of its own."""
    from flax import nnx

    from a3jax.decode.cached import plan
    from a3jax.decode.loop import decode
    from a3jax.model.network import Network

    decoding = Decoding(order=order, seed=seed, **options)
    allowed = np.ones(net.config.vocab, bool) if allowed is None else allowed
    drawn = plan([decoding], [one[0]], [one[1]], net.config, jnp.asarray(allowed)[None])
    many = jax.tree.map(lambda x: jnp.repeat(x, SAMPLES, axis=0) if isinstance(x, jax.Array) else x, drawn)
    many = many._replace(keys_B=jax.random.split(jax.random.key(noise), SAMPLES))
    return decode(Network(net.config, nnx.state(net, nnx.Param), HOW), many, decoding)


def exact(net, tokens, given, blank, texts, order, seed, temperature, top_k=0, repetition_penalty=1.0):
    """The probability of each text under one-by-one decoding, its choices filtered by hand."""
    import brute_force
    from flax import nnx

    drawn, _ = fill(net, [(tokens, given)], order, seed=seed)
    rank = np.argsort(np.asarray(drawn.order.token_index[0]))[: len(tokens)]
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))

    @functools.cache
    def next_token(known):
        """The distribution at the first rank without a token, given those before it."""
        text, groups = np.array(tokens), rank
        place = blank[np.argsort(rank[blank])]
        text[place[: len(known)]] = known
        _, logits = brute_force.two_streams(net.config, params, text, groups, np.ones(len(text), int))
        row = logits[place[len(known)]].astype(np.float64)
        seen = {*np.array(tokens)[given].tolist(), *known}
        row = np.array([(x / repetition_penalty if x > 0 else x * repetition_penalty) if i in seen else x
                        for i, x in enumerate(row)])  # fmt: skip
        row = row / temperature
        if top_k:
            row[np.argsort(-row, kind="stable")[top_k:]] = -np.inf
        weight = np.exp(row - row.max())
        return weight / weight.sum()

    order_of_blanks = np.argsort(rank[blank])
    result = []
    for text in texts:
        ranked = [int(text[i]) for i in order_of_blanks]
        result.append(np.prod([next_token(tuple(ranked[:n]))[ranked[n]] for n in range(len(ranked))]))
    return np.array(result)


@settings(max_examples=100)
@given_that(st.data())
def test_tokens_behind_the_longest_beginning_are_found(data):
    length = 16
    text = np.array(data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)))
    known = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    place = data.draw(st.integers(0, length - 1))

    expected = np.zeros(length, bool)
    for back in range(LOOKED_FOR, 0, -1):
        left = range(place - back, place)
        if left.start >= 0 and known[left].all() and not expected.any():
            for m in range(back, length):
                same = known[m - back : m + 1].all() and (text[m - back : m] == text[left]).all()
                expected[m] = same and m != place
    found = followed(*(jnp.asarray(x)[None] for x in (text, known, place)))
    np.testing.assert_array_equal(found[0], expected)


@settings(max_examples=100)
@given_that(st.data())
def test_drafts_are_looked_up_one_after_the_other(data):
    """From the text alone what followed last, up to a place for which there is none; of several the model's choice."""
    length, ahead, vocab = 16, 3, 5
    text = np.array(data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)))
    known = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    known[0] = True
    known[data.draw(st.permutations(range(1, length)))[:ahead]] = False  # something is open
    places = data.draw(st.permutations(np.flatnonzero(~known).tolist()))[:ahead]
    logits = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(ahead, vocab)).astype(np.float32)
    allowed = np.arange(vocab) != 1

    def expected(wanted):
        now, sure, tokens, found = text.copy(), known.copy(), [], []
        for place, own in zip(places, logits):
            here = np.asarray(followed(*(jnp.asarray(x)[None] for x in (now, sure, place)))[0]) & allowed[now]
            found.append(bool(here.any()))
            own = int(np.argmax(np.where(allowed, own, -np.inf))) if wanted is None else wanted
            now[place] = (max(now[here], key=lambda token: logits[len(tokens), token]) if wanted is None
                          else now[np.flatnonzero(here)[-1]]) if here.any() else own  # fmt: skip
            sure[place] = True
            tokens.append(int(now[place]))
        return tokens, found

    decoding = Decoding(mode="speculative")
    state = State(*[None] * len(State._fields))._replace(
        tokens_BxL=jnp.asarray(text)[None], passes_BxL=jnp.where(known, 1, -1)[None]
    )
    given = Plan(*[None] * len(Plan._fields))._replace(
        keys_B=jax.random.split(jax.random.key(0), 1),
        sampling=sampling_of([decoding]),
        allowed_BxV=jnp.asarray(allowed)[None],
    )
    place_BxK = jnp.asarray(places)[None]
    tokens, found = expected(0)
    drafts = by_text(state, given, place_BxK)
    assert drafts.token_BxK[0].tolist() == tokens
    assert drafts.proposed_B.tolist() == [found.index(False) if False in found else ahead]
    tokens, _ = expected(None)
    drafts = by_both(state, given, place_BxK, jnp.asarray(logits)[None], jnp.zeros((1, vocab), bool))
    assert drafts.token_BxK[0].tolist() == tokens
    assert drafts.proposed_B.tolist() == [ahead]


@pytest.mark.parametrize("prefill", ["ar", "group"])
def test_the_first_pass_tests_drafts_of_the_text(prefill, tiny, network):
    net = network(tiny(layers=2, vocab=4, context=128))
    _, repeating = fill(net, [document([4, 60])], "ar")  # as what a network of few tokens writes greedily soon does
    tokens = [*repeating.tokens_BxL[0, :64].tolist(), *[0] * 8, 1]
    given = [True] * 64 + [False] * 8 + [True]
    _, expected = fill(net, [(tokens, given)], "in_order_1", prefill=prefill)
    for drafter in ("both", "text"):
        how = {"mode": "speculative", "drafter": drafter, "prefill": prefill}
        _, filled = fill(net, [(tokens, given)], "in_order_1", **how)
        np.testing.assert_array_equal(filled.tokens_BxL, expected.tokens_BxL)
        np.testing.assert_allclose(filled.log_probs_BxL, expected.log_probs_BxL, atol=1e-4)
        assert (filled.passes_BxL == 1).sum() > 1


def test_nothing_is_compiled_twice(tiny, network):
    net = network(tiny(layers=2))
    fill(net, [document([4, 9, 3])], "ar", mode="speculative")
    before = speculative.decode_drafted._cache_size()
    for i, order in enumerate(["random_1", "in_order_1", "spans_1"]):
        fill(net, [document([2 + i, 5, 1, 6 - i])], order, seed=i, mode="speculative", temperature=0.5 * i, top_k=i)
    assert speculative.decode_drafted._cache_size() == before


def test_a_batch_gives_each_sequence_what_it_gets_alone(tiny, network):
    net = network(tiny(layers=2))
    documents = [document(n) for n in ([5, 11, 3], [1, 20], [2, 13, 9])]
    _, batch = fill(net, documents, "random_1", seed=5, mode="speculative", temperature=1.0)
    for i, one in enumerate(documents):
        _, alone = fill(net, [one], "random_1", seed=5 + i, mode="speculative", temperature=1.0)
        np.testing.assert_array_equal(batch.tokens_BxL[i], alone.tokens_BxL[0])
