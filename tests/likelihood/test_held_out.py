"""Likelihood by order against a loop over tokens."""

from collections import defaultdict

import brute_force
import numpy as np
import pytest
from flax import nnx

from a3jax.curriculum.stage import parse_order
from a3jax.likelihood.held_out import ORDERS, HeldOut
from a3jax.model.network import Network
from a3jax.model.two_stream import Compute
from a3jax.ordering import example_keys

HOW = Compute(attention="dense")


@pytest.fixture(scope="module")
def held_out(tiny, network, packed):
    """A network, and windows of tokens."""
    model = tiny(layers=2)
    params = nnx.state(network(model), nnx.Param)
    tokens = np.random.default_rng(5).integers(0, model.vocab, packed.shape).astype(np.int32)
    return Network(model, params, HOW), {"tokens": tokens, "segments": packed}


def by_hand(network, windows, name, draw):
    """Log-probability of every token that is not given, one window and one token at a time."""
    family, group_size = parse_order(name)
    found = []
    for i, (tokens, segments) in enumerate(zip(windows["tokens"], windows["segments"])):
        is_given, groups, _ = draw(example_keys(0, 0, 8)[i], segments, family, group_size, 0.0)
        _, logits = brute_force.two_streams(network.config, nnx.to_pure_dict(network.params), tokens, groups, segments)
        log_p = brute_force.log_softmax(logits)
        found.append([log_p[t, tokens[t]] for t in range(len(tokens)) if segments[t] and not is_given[t]])
    return found


def test_held_out_nll_equals_the_loop_over_tokens_in_every_order(held_out, draw):
    network, windows = held_out
    found = HeldOut(windows, batch=2).nll(network)
    assert tuple(found) == ORDERS
    nll = {name: one.nll for name, one in found.items()}
    for name in ORDERS:
        expected = -np.mean(np.concatenate(by_hand(network, windows, name, draw)))
        np.testing.assert_allclose(nll[name], expected, rtol=1e-5, err_msg=name)
    assert len(set(nll.values())) == len(ORDERS)


def test_a_window_has_the_same_order_in_any_batch(held_out):
    network, windows = held_out
    assert len(windows["tokens"]) > 2
    one, two = (HeldOut(windows, batch).nll(network, ("random_4",)) for batch in (2, 3))
    assert one["random_4"].nll == pytest.approx(two["random_4"].nll, rel=1e-6)


def test_windows_that_fill_the_last_batch_do_not_count(held_out):
    network, windows = held_out
    one = {name: x[:1] for name, x in windows.items()}
    alone, filled = (HeldOut(one, batch).nll(network, ("ar", "random_4")) for batch in (1, 5))
    for order in ("ar", "random_4"):
        for x, y in zip(alone[order], filled[order], strict=True):
            assert x == pytest.approx(y, rel=1e-6)


def test_parts_by_rank_and_by_what_is_visible_equal_a_loop_over_tokens(held_out, draw):
    network, windows = held_out
    found = HeldOut(windows, batch=3).nll(network, ("ar", "random_4"))
    for name, one in found.items():
        log_probs = by_hand(network, windows, name, draw)
        by_rank, by_visible = defaultdict(list), defaultdict(list)
        for i, segments in enumerate(windows["segments"]):
            is_given, groups, _ = draw(example_keys(0, 0, 3)[i], segments, *parse_order(name), 0.0)
            predicted = [t for t in range(24) if segments[t] and not is_given[t]]
            for t, log_prob in zip(predicted, log_probs[i], strict=True):
                document = np.flatnonzero(segments == segments[t])
                rank = sorted(document, key=lambda u: (groups[u], u)).index(t)
                by_rank[4 * rank // len(document)].append(-log_prob)
                by_visible[4 * sum(groups[u] < groups[t] for u in document) // 24].append(-log_prob)
        for parts, expected in ((one.nll_by_rank, by_rank), (one.nll_by_visible, by_visible)):
            assert list(parts) == [pytest.approx(np.mean(expected[k]), rel=1e-5) if k in expected else None for k in range(4)]


def test_without_windows_there_is_no_nll(held_out):
    network, windows = held_out
    assert HeldOut({name: x[:0] for name, x in windows.items()}, 2).nll(network) == {}


def test_the_orders_are_the_same_at_every_call(held_out):
    network, windows = held_out
    evaluation = HeldOut(windows, batch=3)
    assert evaluation.nll(network, ("random_4",)) == evaluation.nll(network, ("random_4",))
