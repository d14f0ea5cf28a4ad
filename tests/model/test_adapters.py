"""Adapters change what they are to change, and nothing else; `test_two_stream` holds their values against the brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from flax import nnx
from test_two_stream import random_batch

from a3jax.model.adapters import adapted, factors
from a3jax.model.two_stream import Compute, Stream, TwoStream
from a3jax.ordering import draw_order, example_keys

HOW = Compute(attention="dense")


@pytest.mark.parametrize("stream", ["query", "both"])
def test_new_adapters_change_nothing(stream, tiny, packed, without_adapters):
    net = TwoStream(tiny(layers=2, adapter_rank=3, adapter_stream=stream), nnx.Rngs(0))
    tokens, _, order = random_batch(packed, net.config, seed=1)
    hidden = jax.jit(lambda net: net.query_hidden(tokens, order, HOW))
    np.testing.assert_allclose(hidden(net)[packed > 0], hidden(without_adapters(net))[packed > 0], atol=1e-5)
    assert any(leaf.any() for path, leaf in nnx.to_flat_state(nnx.state(net)) if path[-1] == factors("gate")[0])


def test_adapters_of_the_query_stream_leave_the_content_stream_bit_for_bit(tiny, network, packed, without_adapters):
    net = network(tiny(layers=2, adapter_rank=3))
    tokens = np.random.default_rng(0).integers(0, net.config.vocab, packed.shape)
    order = draw_order(example_keys(0, 0, len(packed)), packed, "in_order", 3, 0.0, "successor")
    content, query = (
        jax.jit(lambda net, name=name: getattr(net, name)(tokens, order, HOW)) for name in ("content_hidden", "query_hidden")
    )
    np.testing.assert_array_equal(content(net), content(without_adapters(net)))
    change = np.abs(query(net) - query(without_adapters(net))).max(-1)
    real = np.take_along_axis(packed, np.asarray(order.token_index), axis=1) > 0
    causal = np.asarray(order.causal)
    assert (causal & np.asarray(order.predicted)).any()
    np.testing.assert_array_equal((change > 1e-2)[real], ~causal[real])
    np.testing.assert_array_equal(change[real & causal], 0)


def test_causal_queries_are_the_source_models_only_where_content_has_not_seen_ahead(tiny, network, packed, without_adapters):
    net = network(tiny(layers=2, adapter_rank=3))
    tokens = np.random.default_rng(0).integers(0, net.config.vocab, packed.shape)
    found, query_hidden = {}, jax.jit(lambda net, order: net.query_hidden(tokens, order, HOW))
    for size in (1, 3):
        order = draw_order(example_keys(0, 0, len(packed)), packed, "in_order", size, 0.0, "successor")
        hidden = query_hidden(net, order), query_hidden(without_adapters(net), order)
        causal = np.asarray(order.causal & order.predicted)
        np.testing.assert_allclose(hidden[0][causal], hidden[1][causal], atol=1e-5)  # neither has passed an adapter
        found[size] = np.asarray(hidden[1]), causal
    (alone, every), (grouped, first) = found[1], found[3]
    assert every.sum() > first.sum() > 20
    difference = np.abs(grouped - alone)[first].max(axis=-1)  # in order, a slot holds the same token whatever the groups
    assert (difference > 1e-2).mean() > 0.5, "most read keys that saw ahead"
    assert (difference < 1e-4).any(), "those of second groups, behind a given first token, do not"


def test_with_content_up_to_its_slot_every_causal_query_of_an_order_from_left_to_right_is_the_source_models(
    tiny, network, packed, without_adapters
):
    net = network(tiny(layers=2, adapter_rank=3, content="slot"))
    source = without_adapters(net)
    tokens = np.random.default_rng(0).integers(0, net.config.vocab, packed.shape)

    @functools.partial(jax.jit, static_argnames="stream")
    def hidden(net, order, stream):
        return getattr(net, f"{stream}_hidden")(tokens, order, HOW)

    one_by_one = draw_order(example_keys(0, 0, len(packed)), packed, "in_order", 1, 0.0, "successor")
    for size in (3, 8):
        order = draw_order(example_keys(0, 0, len(packed)), packed, "in_order", size, 0.0, "successor")
        np.testing.assert_array_equal(order.token_index, one_by_one.token_index)
        content = (hidden(one, which, "content") for one, which in ((net, order), (source, one_by_one)))
        np.testing.assert_array_equal(*content)  # and so are the keys and values that a cache keeps
        ours, theirs = hidden(net, order, "query"), hidden(source, one_by_one, "query")
        first = np.asarray(order.causal & order.predicted)
        np.testing.assert_allclose(ours[first], theirs[first], atol=1e-5)
        assert first.sum() > 5
        others = np.asarray(~order.causal & order.predicted)
        assert np.abs(ours - theirs)[others].max(-1).min() > 1e-2


@pytest.mark.parametrize("remat", long_after(1, ["dots", "none", "full"]))
def test_gradients_are_those_of_both_streams_in_one_pass_with_a_fixed_content_stream(remat, tiny, network, packed):
    net = network(tiny(layers=2, adapter_rank=3))
    tokens, _, order = random_batch(packed, net.config, seed=1)
    graph, params = nnx.split(net)
    names = {factor for name in adapted(net.config) for factor in factors(name)} | {"query_seed"}
    changed, still = nnx.split_state(params, lambda path, _: path[-1] in names, ...)

    def apart(changed):
        net = nnx.merge(graph, changed, still)
        return jnp.sin(net.query_hidden(tokens, order, HOW._replace(remat=remat))).sum()

    def together(changed):
        net = nnx.merge(graph, changed, still)
        predecessor = jnp.take_along_axis(jnp.asarray(tokens), jnp.maximum(order.predecessor, 0), axis=1)
        content = net.embed(jnp.take_along_axis(jnp.asarray(tokens), order.token_index, axis=1), HOW)
        queries = net.embed_queries(predecessor, order.predecessor >= 0, HOW)
        known = Stream(content, order.position, order.start, order.group_end)
        asked = Stream(queries, order.query_position, order.start, order.group_start, ~order.causal)
        return jnp.sin(net.run(known, asked, HOW)[0]).sum()

    (value, gradients), (expected, wanted) = (jax.jit(jax.value_and_grad(f))(changed) for f in (apart, together))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, gradient in nnx.to_flat_state(gradients):
        other = dict(nnx.to_flat_state(wanted))[path]
        assert np.abs(other[...]).max() > 0
        np.testing.assert_allclose(
            gradient[...], other[...], atol=2e-5 * float(np.abs(other[...]).max()), rtol=0, err_msg=str(path)
        )
