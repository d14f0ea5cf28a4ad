"""Log-probabilities in any order against the brute force, and one stream against two."""

import brute_force
import jax
import numpy as np
import pytest
from flax import nnx

from a3jax.curriculum.stage import Part, Stage
from a3jax.likelihood.forward import log_probs, one_stream_is_enough
from a3jax.model.two_stream import Compute
from a3jax.ordering import arrange
from a3jax.ordering.sequence import draw, left_to_right

HOW = Compute(attention="dense")


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(layers=2)


@pytest.fixture(scope="module")
def held_out(model, network, packed):
    """A network's graph and parameters, and windows of tokens."""
    graph, params = nnx.split(network(model))
    tokens = np.random.default_rng(5).integers(0, model.vocab, packed.shape).astype(np.int32)
    return graph, params, {"tokens": tokens, "segments": packed}


def test_log_probs_stand_in_window_order_and_are_zero_where_nothing_is_predicted(model, held_out):
    graph, params, windows = held_out
    rng = np.random.default_rng(1)
    tokens, segments = windows["tokens"], windows["segments"]
    groups = rng.integers(0, 6, tokens.shape).astype(np.int32)
    is_given = rng.random(tokens.shape) < 0.3
    order = jax.vmap(lambda g, i, s: arrange(g, i, s, model.seeding))(groups, is_given, segments)
    run = jax.jit(lambda tokens, order: log_probs(nnx.merge(graph, params), tokens, order, HOW, chunk=40))
    found = np.asarray(run(tokens, order))
    for b in range(len(tokens)):
        _, logits = brute_force.two_streams(model, nnx.to_pure_dict(params), tokens[b], groups[b], segments[b])
        expected = brute_force.log_softmax(logits)[np.arange(24), tokens[b]]
        expected[is_given[b] | (segments[b] == 0)] = 0
        np.testing.assert_allclose(found[b], expected, atol=2e-5)
    assert (found[is_given | (segments == 0)] == 0).all()


def test_one_stream_from_left_to_right_gives_what_two_do(model, held_out):
    """Some tokens given between those predicted, and padding. Both are float32: to a few dozen roundings."""
    graph, params, windows = held_out
    tokens, segments = windows["tokens"][:2], np.ones((2, 24), np.int32)
    segments[1, 17:] = 0
    is_given = np.random.default_rng(2).random(tokens.shape) < 0.3
    is_given[:, 0] = True
    place = np.tile(np.arange(24), (2, 1))
    order = jax.vmap(lambda g, i, s: arrange(g, i, s, model.seeding))(place, np.zeros_like(is_given), segments)
    order = order._replace(predicted=order.predicted & ~is_given)
    assert all(left_to_right(jax.tree.map(lambda x, b=b: np.asarray(x[b]), order), count) for b, count in enumerate((24, 17)))
    run = jax.jit(log_probs, static_argnames=("compute", "one_stream"))
    found = [run(nnx.merge(graph, params), tokens, order, HOW, one_stream=one_stream) for one_stream in (False, True)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert (np.asarray(found[1]) < 0).sum() == np.asarray(order.predicted).sum() < 40


def test_the_shortcut_is_taken_only_where_it_is_exact(tiny):
    assert not one_stream_is_enough(tiny(), Stage(1, "in_order", 2).is_ar)
    assert not one_stream_is_enough(tiny(), Stage(1, "random", 1).is_ar)
    assert not one_stream_is_enough(tiny(), Stage(1, "in_order", 1, given=0.5).is_ar)
    assert not one_stream_is_enough(tiny(seeding="learned"), Stage(1, "in_order", 1).is_ar)


def test_a_name_a_stage_and_a_drawn_order_are_from_left_to_right_alike():
    for name in ("ar", "in_order_1", "in_order_2", "random_1", "right_to_left", "infill_1"):
        part = Part.named(name)
        stage = Stage(1, part.family, part.group_size)
        drawn = draw(3, [0] * 24, [i == 0 for i in range(24)], name, "successor").order
        alike = {part.is_ar, stage.is_ar, left_to_right(jax.device_get(drawn), 24)}
        assert alike == {name in ("ar", "in_order_1")}, name
