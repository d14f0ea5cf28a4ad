"""Decoding with the cache: against the brute force, and against teacher forcing of the same order."""

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from filling import HOW, document, fill, log_probs, teacher_forced
from flax import nnx
from small_models import ODD

from a3jax.checkpoint.folder import load_params
from a3jax.config import Experts, Rope
from a3jax.decode import groups
from a3jax.decode.cached import plan
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.model.unstacked import unstacked

LOCAL = {"local_layers": (0,), "local_window": 6, "local_rope": Rope(50.0), "unrotated_layers": (1,)}
LOCAL |= {"attention_cap": 2.0, "logit_cap": 3.0, "embedding_scale": 2.0}
GPT_OSS = {"experts": Experts(5, 2, biases=True), "attention_sinks": True, "activation": "gelu_sigmoid", "gate_limit": 1.0}


def window_groups(order, b=0):
    """Group numbers in window order, ascending in generation order."""
    result = np.empty(order.token_index.shape[1], int)
    result[np.asarray(order.token_index[b])] = np.asarray(order.group_start[b])
    return result


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("random_4", {"tied_head": True, "query_key_norm": "full", "pre_norm": False, "post_norm": True}),
        ("in_order_3", {"seeding": "learned", "qkv_bias": True}),
        ("random_4", {"content": "slot", "seeding": "two_sided"}),
        pytest.param("random_4", LOCAL, marks=pytest.mark.long),
        ("ar", {}),
        pytest.param("random_1", {}, marks=pytest.mark.long),
        pytest.param("spans_4", {}, marks=pytest.mark.long),
        pytest.param("random_4", GPT_OSS | {"qkv_limit": 1.0}, marks=pytest.mark.long),
    ],
)
def test_greedy_choices_equal_recomputation_without_a_cache(order, options, tiny, network):
    config = tiny(layers=2, context=256, **options)
    net = network(config)
    tokens, given = document([3, 7, 4, 2, 5, 6, 2])
    allowed = np.arange(config.vocab) % 5 > 0
    drawn, filled = fill(net, [(tokens, given)], order, allowed, seed=3)

    groups_N = window_groups(drawn.order)[: len(tokens)]
    expected, scores = np.array(tokens), np.zeros(len(tokens))
    open_groups = np.unique(groups_N[~np.array(given)])
    for group in open_groups:
        params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
        _, logits = brute_force.two_streams(config, params, expected, groups_N, np.ones(len(tokens), int))
        here = (groups_N == group) & ~np.array(given)
        choice = np.where(allowed, logits, -np.inf).argmax(-1)
        scores[here] = np.take_along_axis(brute_force.log_softmax(logits), choice[:, None], -1)[here, 0]
        expected[here] = choice[here]
    assert filled.passes_BxL.max() == len(open_groups)
    by_group = np.searchsorted(open_groups, groups_N) + 1
    np.testing.assert_array_equal(filled.passes_BxL[0, : len(tokens)], np.where(given, 0, by_group))
    np.testing.assert_array_equal(filled.tokens_BxL[0, : len(tokens)], expected)
    np.testing.assert_allclose(filled.log_probs_BxL[0, : len(tokens)], scores, atol=1e-4)


@pytest.mark.parametrize(
    ("order", "changes"),
    long_after(
        5,
        [
            *(
                ("random_4", {"seeding": "two_sided"}),
                ("in_order_4", {}),
                ("random_1", {}),
                ("random_4", {"seeding": "learned"}),
                ("spans_4", {"content": "slot"}),
            ),
            *(("random_4", LOCAL), ("random_4", GPT_OSS)),
            *((order, {}) for order in ("ar", "random_4", "random_8", "spans_4", "random_1000")),
            *(("random_4", {"content": "slot"}), ("spans_4", {"seeding": "learned"}), ("ar", LOCAL)),
        ],
    ),
)
def test_chain_rule(order, changes, tiny, network):
    net = network(tiny(layers=2, context=256, **changes))
    # Several blanks of sizes that no group size divides; one blank to the end; a full window; more keys than one block.
    documents = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40], [2, 13, 49], [200, 9, 30, 14, 3])]
    drawn, filled = fill(net, documents, order, seed=1, temperature=1.0)
    teacher = np.asarray(log_probs(net, jnp.asarray(filled.tokens_BxL), drawn.order, compute=HOW))
    np.testing.assert_allclose(filled.log_probs_BxL, teacher, atol=1e-4)
    np.testing.assert_allclose(filled.log_probs_BxL.sum(1), teacher.sum(1), atol=1e-4)
    for (tokens, given), filled_L, log_prob_L in zip(documents, filled.tokens_BxL, filled.log_probs_BxL):
        here = np.flatnonzero(~np.array(given))
        np.testing.assert_array_equal(np.delete(filled_L[: len(tokens)], here), np.delete(tokens, here))
        np.testing.assert_array_equal(np.flatnonzero(log_prob_L), here)


@pytest.mark.long
@pytest.mark.parametrize("case", ODD)
def test_chain_rule_of_every_family(case, imported):
    net = nnx.merge(graph(imported(case).config), load_params(imported(case)))
    documents = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40])]
    drawn, filled = fill(net, documents, "random_4", seed=1, temperature=1.0)
    teacher = np.asarray(log_probs(net, jnp.asarray(filled.tokens_BxL), drawn.order, compute=HOW))
    np.testing.assert_allclose(filled.log_probs_BxL, teacher, atol=1e-4)
    assert (filled.passes_BxL > 0).sum() == sum(len(given) - sum(given) for _, given in documents)


def test_layers_that_lie_apart_decode_as_stacked_ones(tiny, network):
    net = network(tiny(adapter_rank=3, context=256))
    apart = nnx.merge(graph(net.config), unstacked(jax.tree.map(jnp.array, nnx.state(net, nnx.Param))))
    for order in ("ar", "random_4"):
        (_, own), (_, expected) = (fill(one, [document([5, 11, 3, 1]), document([9, 8])], order) for one in (apart, net))
        np.testing.assert_array_equal(own.tokens_BxL, expected.tokens_BxL)
        np.testing.assert_allclose(own.log_probs_BxL, expected.log_probs_BxL, atol=2e-5)


def test_left_to_right_the_row_that_reads_a_token_predicts_the_next(tiny, network):
    def asks(config, *lengths, **how):
        tokens, given = zip(*map(document, lengths))
        decodings = [Decoding(**how)] * len(lengths)
        return plan(decodings, tokens, given, config, jnp.ones((1, 48), bool)).extent.queries

    config = tiny(context=256)
    assert not asks(config, [5, 9], [3, 4])
    assert not asks(config, [0, 9])
    assert asks(config, [5, 9], [3, 4, 1])  # of one text something behind the blank is seen too
    assert asks(config, [5, 9], order="in_order_2")
    assert asks(config, [5, 9], prefill="group")
    assert asks(tiny(seeding="learned"), [5, 9])
    for changes in ({}, {"adapter_rank": 3}, {"adapter_rank": 3, "adapter_stream": "both"}):
        net = network(tiny(context=256, **changes))
        documents = [document([5, 9]), document([0, 12]), document([20, 1])]
        drawn, filled = fill(net, documents, "ar", seed=1, temperature=1.0)
        assert not drawn.extent.queries
        np.testing.assert_allclose(filled.log_probs_BxL, teacher_forced(net, documents, filled), atol=1e-4)


def test_passes_are_groups(tiny):
    def passes(order):
        marks = [[True] * 4 + [False] * 10]
        return plan([Decoding(order=order)], [range(14)], marks, tiny(), jnp.ones((1, 48), bool)).extent.groups

    # Slots 4 to 13; groups break at multiples of the size.
    found = {order: passes(order) for order in ("ar", "in_order_4", "random_4", "random_8", "random_10000000000")}
    assert found == {"ar": 10, "in_order_4": 3, "random_4": 3, "random_8": 2, "random_10000000000": 1}
    assert passes("spans_4") == 4  # spans break at tokens 1, 5, 9, 13 of the document


def test_nothing_is_compiled_twice(tiny, network):
    net = network(tiny(layers=2, context=256))
    fill(net, [document([4, 9, 3])], "random_4")
    before = groups.decode_group._cache_size()
    for i, order in enumerate(["random_4", "in_order_4", "spans_4", "infill_4"]):
        fill(net, [document([2 + i, 5, 1, 6 - i])], order, seed=i, temperature=0.5 * i, top_k=i, top_p=1 - 0.1 * i)
    assert groups.decode_group._cache_size() == before


def test_bfloat16_follows_single_precision(tiny, network):
    net, how = network(tiny(layers=2, context=256)), Compute(jnp.dtype("bfloat16"))
    half = nnx.merge(nnx.graphdef(net), jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(net, nnx.Param)))
    drawn, filled = fill(half, [document([5, 11, 3])], "random_4", compute=how, temperature=1.0)
    teacher = np.asarray(log_probs(net, jnp.asarray(filled.tokens_BxL), drawn.order, compute=HOW))
    assert filled.log_probs_BxL.dtype == np.float32
    np.testing.assert_allclose(filled.log_probs_BxL, teacher, atol=0.15)


def test_unknown_order():
    with pytest.raises(UserError, match="order 'sideways_2' is unknown"):
        Decoding(order="sideways_2")
