"""Family `open`: each document against one whose empty places hold tokens that come last, and so are seen by no other."""

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from flax import nnx

from a3jax.curriculum.stage import Part, Stage
from a3jax.likelihood.forward import log_probs
from a3jax.model.two_stream import Compute
from a3jax.ordering import arrange, draw_mixture, example_keys
from a3jax.ordering.layout import with_gaps
from a3jax.ordering.sequence import draw
from a3jax.train.objectives.any_order import AnyOrder

SLACK = 5


def in_window_order(order, name, b):
    """One array of a batch's orders, by place in the window."""
    return np.asarray(getattr(order, name)[b])[np.argsort(order.token_index[b])]


def rebuilt(order, tokens, segments, b, end_token):
    """(places in the window, tokens, groups, which are empty) of every document of window b, laid out with its empty places.

    It knows of the drawn order what is predicted, where tokens stand, and which come in one group.
    """
    predicted, position, group = (in_window_order(order, x, b) for x in ("predicted", "position", "group_start"))
    for number in range(1, segments.max() + 1):
        index = np.flatnonzero(segments == number)
        if not predicted[index].any():
            assert len(index) == 1
            continue
        *blank, last = index[predicted[index]]
        assert last == index[-1], "the end takes the slot of the last token"
        assert list(blank) == list(range(blank[0], blank[-1] + 1)) if blank else True
        before = [i for i in index if not predicted[i] and i < (blank[0] if blank else last)]
        after = [i for i in index if not predicted[i] and i > before[-1]]
        count = position[after[0]] - len(before) - len(blank) - 1 if after else 0
        assert 0 <= count <= SLACK
        where = np.array([*before, *blank, last, *[-1] * count, *after])
        text = np.where(where < 0, 7, tokens[where])
        text[where == last] = end_token
        groups = np.where(where < 0, 10_000, group[where])
        np.testing.assert_array_equal(position[where[where >= 0]], np.flatnonzero(where >= 0))
        yield where, text, groups


@pytest.mark.parametrize(
    ("group_size", "changes"),
    long_after(
        3,
        [
            *((3, {"seeding": "two_sided"}), (1, {"adapter_rank": 2}), (1, {"seeding": "two_sided", "adapter_rank": 2})),
            *((3, {}), (1, {}), (1, {"seeding": "learned"})),
        ],
    ),
)
def test_what_is_predicted_is_what_full_masks_give(tiny, network, packed, group_size, changes):
    """Masks, places, queries and the loss. Groups of the reference are those that were drawn."""
    config = tiny(end_tokens=(3,), **changes)
    graph, params = nnx.split(network(config))
    tokens = np.random.default_rng(5).integers(8, config.vocab, packed.shape).astype(np.int32)
    part = Part(family="open", group_size=group_size, given=0.3, slack=SLACK)
    keys = example_keys(4, group_size, len(packed))
    order = jax.device_get(draw_mixture(keys, packed, (part,), config.seeding))
    found = log_probs(nnx.merge(graph, params), jnp.asarray(order.end_blanks(tokens, (3,))), order, Compute())
    expected, gaps = np.zeros(tokens.shape), 0
    for b in range(len(tokens)):
        for where, text, groups in rebuilt(order, tokens[b], packed[b], b, 3):
            _, logits = brute_force.two_streams(config, nnx.to_pure_dict(params), text, groups, np.ones(len(text), int))
            log_prob = brute_force.log_softmax(logits)[np.arange(len(text)), text]
            counts = (where >= 0) & in_window_order(order, "predicted", b)[where]
            expected[b, where[counts]] = log_prob[counts]
            gaps += (where < 0).sum()
    assert gaps
    np.testing.assert_allclose(found, expected, atol=2e-5)

    stage = Stage(1, "open", group_size, given=0.3, slack=SLACK)
    sums = AnyOrder(config, stage, Compute(), 64).sums(params, {"tokens": jnp.asarray(tokens), "segments": packed}, keys)
    np.testing.assert_allclose(sums.loss, -expected.sum(), rtol=1e-5)
    assert int(sums.counts.predicted) == (expected != 0).sum()


def test_what_follows_a_gap_does_not_tell_the_length_of_the_blank(tiny, network):
    """The same text around spans of 1 to 6 tokens in a gap of 7: hidden states of what follows are equal bit for bit."""
    config, length, before, after, gap = tiny(), 24, 5, 8, 7
    net = network(config)
    rng = np.random.default_rng(0)
    around = rng.integers(8, config.vocab, before + after)

    @jax.jit
    def content(tokens_L, segment_L, given_L, group_L, blank_end, empty):
        index_L = jnp.arange(length)
        end = (segment_L > 0).sum()
        start_L, end_L = jnp.where(segment_L > 0, 0, index_L), jnp.where(segment_L > 0, end, index_L + 1)
        layout = with_gaps(start_L, end_L, jnp.where(segment_L > 0, blank_end, index_L), jnp.where(segment_L > 0, empty, 0))
        order = jax.tree.map(lambda x: x[None], arrange(group_L, given_L, segment_L, config.seeding, layout=layout))
        return net.content_hidden(tokens_L[None], order, Compute())[0, : before + after], order.position[0, : before + after]

    hidden, positions = [], []
    for n in range(1, gap):
        own = before + n + after + 1
        tokens = np.zeros(length, int)
        tokens[:own] = [*around[:before], *rng.integers(8, config.vocab, n), *around[before:], 9]
        index = np.arange(length)
        given = (index < before) | ((index >= before + n) & (index < own - 1))
        group = np.where(given, index, length + index)
        found = content(tokens, (index < own).astype(int), given, group, before + n, gap - n - 1)
        hidden.append(np.asarray(found[0]))
        positions.append(np.asarray(found[1]))
    assert content._cache_size() == 1
    np.testing.assert_array_equal(positions[0], [*range(before), *range(before + gap, before + gap + after)])
    for other_hidden, other_positions in zip(hidden[1:], positions[1:]):
        np.testing.assert_array_equal(other_hidden, hidden[0])
        np.testing.assert_array_equal(other_positions, positions[0])


def test_probabilities_of_all_answers_sum_to_one(tiny, network):
    """Every text of a vocabulary of 4 in a gap of 4: shorter ones with their end, and those that fill the gap without."""
    config, gap, end = tiny(vocab=5, layers=2), 4, 4
    net = network(config)
    before, after = [1, 3], [2, 0, 1]
    run = jax.jit(lambda tokens, order: log_probs(net, tokens, order, Compute()))
    texts = [[]]
    for _ in range(gap):  # texts that have not ended grow by each token
        texts = [[*text, token] for text in texts for token in range(5) if end not in text] + [t for t in texts if end in t]
    assert len(texts) == 1 + 4 + 16 + 64 + 256
    given = np.array([True] * 2 + [False] * gap + [True] * 3)
    orders, tokens = [], []
    for text in texts:
        empty = np.zeros(len(given), bool)
        empty[2 + len(text) : 2 + gap] = True
        one = draw(0, [*before, *text, *[0] * (gap - len(text)), *after], given, "ar", config.seeding, empty=empty)
        orders.append(one.order)
        tokens.append(one.tokens_L)
    found = run(np.stack(tokens), jax.tree.map(lambda *x: np.stack(x), *orders))
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64).sum(axis=1)).sum(), 1, atol=1e-5)


@pytest.mark.long
def test_how_many_places_stay_empty_is_drawn_for_every_document(packed):
    """All numbers up to the slack come, and spans of many lengths, and the two have nothing to do with each other."""
    run = jax.jit(lambda keys: draw_mixture(keys, packed[:1], (Part(family="open", given=0.3, slack=2),), "successor"))
    seen = []
    for step in range(150):
        order = run(example_keys(0, step, 1))
        predicted, position = in_window_order(order, "predicted", 0), in_window_order(order, "position", 0)
        if not predicted[-2]:  # something follows the blank
            seen.append((int(predicted.sum()) - 1, int(position.max()) - 23))
    lengths, empty = (np.array(x) for x in zip(*seen))
    assert set(empty.tolist()) == {0, 1, 2}
    assert len(set(lengths.tolist())) > 12
    assert min(lengths) == 1
    assert abs(np.corrcoef(lengths, empty)[0, 1]) < 0.25
