"""The network against the brute force, and the identities it promises."""

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from a3jax.attention import chunked
from a3jax.config import Experts, Llama3Scaling, LongScaling, ModelConfig, Rope
from a3jax.model.parameters import count, shapes
from a3jax.model.two_stream import Compute, TwoStream
from a3jax.ordering import arrange, draw_order, example_keys

LOCAL = {"local_layers": (0,), "local_window": 5}
GEMMA = {"norm": "rms_offset", "post_norm": True, "activation": "gelu_tanh", "embedding_scale": 4.0, "attention_scale": 0.5}
GEMMA |= {"attention_cap": 2.0, "logit_cap": 3.0}
OPTIONS = {
    "llama": {},
    "llama 3.1, tied": {"tied_head": True, "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 16)},
    "qwen 2, tied": {"tied_head": True, "qkv_bias": True},
    "qwen 3": {"query_key_norm": "head", "rope_theta": 1e6},
    "olmo": {"norm": "layer"},
    "olmo 2": {"query_key_norm": "full", "pre_norm": False, "post_norm": True},
    "granite": {"embedding_scale": 3.0, "residual_scale": 0.4, "attention_scale": 0.2, "logit_divisor": 2.0},
    "smollm 3, biases": {"unrotated_layers": (1,), "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "gemma 3": {**GEMMA, "query_key_norm": "head", **LOCAL, "local_rope": Rope(50.0)},
    "phi": {"rotary_width": 4, "rope_scaling": LongScaling((1.0, 1.5), (2.0, 9.0), 16, 1.2)},
    "one key-value head": {"kv_heads": 1, "norm_eps": 1e-3},
    "as many key-value heads": {"kv_heads": 4},
    "learned seed": {"seeding": "learned"},
    "two-sided seed": {"seeding": "two_sided", "embedding_scale": 3.0},
    "two-sided seed, adapters": {"seeding": "two_sided", "adapter_rank": 3},
    "everything": {"tied_head": True, "qkv_bias": True, "query_key_norm": "full", "seeding": "learned", **GEMMA},
    "one layer": {"layers": 1},
    "content up to its slot": {"content": "slot"},
    "content up to its slot, adapters": {"content": "slot", "adapter_rank": 3},
    "experts": {"experts": Experts(5, 2)},
    "experts by probability, one layer": {"experts": Experts(3, 1, normalized=False), "layers": 1},
    "experts, adapters": {"experts": Experts(4, 3), "adapter_rank": 3},
    "adapters": {"adapter_rank": 3},
    "adapters in both streams, tied": {"adapter_rank": 3, "adapter_stream": "both", "tied_head": True},
}

LONG = (
    *("llama 3.1, tied", "qwen 3", "granite", "phi", "as many key-value heads", "one layer"),
    *("qwen 2, tied", "olmo"),
    *("content up to its slot, adapters", "experts by probability, one layer", "experts, adapters"),
)
"""Left to the long tests: others meet their mechanisms, here or in `tests/weights/test_import.py`."""


def random_batch(segments, config: ModelConfig, seed: int, size: int = 4, given: float = 0.4):
    """Tokens, drawn groups in window order, and their order."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab, segments.shape).astype(np.int32)
    first = np.stack([brute_force.document_start(s) for s in segments]) == np.arange(segments.shape[1])
    is_given = first | (rng.random(segments.shape) < given)
    groups = rng.integers(0, segments.shape[1] // size, segments.shape) + segments.shape[1]
    groups = np.where(is_given, np.arange(segments.shape[1]), groups).astype(np.int32)
    order = jax.vmap(lambda g, i, s: arrange(g, i, s, config.seeding))(groups, is_given, segments)
    return tokens, groups, order


def in_window_order(x_BxLxD, order):
    return np.take_along_axis(np.asarray(x_BxLxD), np.argsort(order.token_index, axis=1)[..., None], axis=1)


def pure(net: TwoStream) -> dict:
    return nnx.to_pure_dict(nnx.state(net, nnx.Param))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in OPTIONS])
def test_both_streams_equal_the_brute_force(name, tiny, network, packed, monkeypatch):
    monkeypatch.setattr(chunked, "ROW_BLOCK", 8)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 8)
    config = tiny(**{"layers": 2, **OPTIONS[name]})
    net, how = network(config), Compute(attention="chunked" if name in ("llama", "gemma 3", "everything") else "dense")
    tokens, groups, order = random_batch(packed, config, seed=1)

    @jax.jit
    def both(tokens, order):
        return [net.logits(hidden(tokens, order, how)) for hidden in (net.content_hidden, net.query_hidden)]

    content, query = (in_window_order(logits, order) for logits in both(tokens, order))
    for b, segments in enumerate(packed):
        expected = brute_force.two_streams(config, pure(net), tokens[b], groups[b], segments)
        real = segments > 0
        scale = np.abs(expected[1]).max()
        np.testing.assert_allclose(content[b, real], expected[0][real], atol=1e-5 * scale, rtol=0)
        np.testing.assert_allclose(query[b, real], expected[1][real], atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "query_key_norm": "full", **GEMMA}])
def test_in_order_groups_of_one_make_the_query_stream_the_content_stream_one_token_earlier(options, tiny, network, packed):
    config = tiny(layers=2, **options)
    net, how = network(config), Compute()
    tokens = np.random.default_rng(0).integers(0, config.vocab, packed.shape)
    order = draw_order(example_keys(0, 0, len(packed)), packed, "in_order", 1, 0.0, "successor")
    np.testing.assert_array_equal(np.asarray(order.token_index), np.broadcast_to(np.arange(24), packed.shape))
    both = jax.jit(lambda tokens: (net.content_hidden(tokens, order, how), net.query_hidden(tokens, order, how)))
    content, query = both(tokens)
    predicted = np.asarray(order.predicted)
    shifted = np.roll(np.asarray(content), 1, axis=1)
    np.testing.assert_allclose(np.asarray(query)[predicted], shifted[predicted], atol=1e-5)


@pytest.mark.parametrize(("seeding", "attention"), [("successor", "dense"), ("learned", "chunked")])
def test_a_first_group_that_sees_nothing_gives_finite_values_and_gradients(attention, seeding, tiny, network):
    config = tiny(layers=2, seeding=seeding)
    net, how = network(config), Compute(attention=attention)
    segments, nothing = np.ones(8, np.int32), np.zeros(8, bool)
    order = arrange(jnp.arange(8) // 4, nothing, segments, seeding)
    order = jax.tree.map(lambda x: x[None], order)
    assert order.predicted.all()
    assert (order.group_start[0, :4] == order.start[0, :4]).all()

    def total(net, tokens):
        hidden = net.query_hidden(tokens, order, how)
        return hidden.sum(), hidden

    run = jax.jit(nnx.grad(total, has_aux=True))
    (gradient, hidden), (_, other) = run(net, np.arange(8)[None]), run(net, np.arange(8)[None] + 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((hidden, gradient)))
    np.testing.assert_array_equal(hidden[0, :4], other[0, :4])
    assert (hidden[0, 4:] != other[0, 4:]).any()


def test_bfloat16_is_close_to_float32(tiny, network, packed):
    config = tiny()
    net = network(config)
    tokens, _, order = random_batch(packed, config, seed=2)
    exact, rough = (
        jax.jit(lambda tokens, dtype=dtype: net.query_hidden(tokens, order, Compute(jnp.dtype(dtype))))(tokens)
        for dtype in ("float32", "bfloat16")
    )
    exact = np.asarray(exact)
    assert rough.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rough, np.float32) - exact)[packed > 0]
    assert error.mean() < 0.02 * np.abs(exact).mean()  # 8 bits of mantissa, three layers


@pytest.mark.slow
def test_rematerialization_changes_no_gradient_and_saves_less(tiny, network, packed):
    config = tiny(layers=4)
    net, segments = network(config), packed[1:2]
    tokens, _, order = random_batch(segments, config, seed=3)

    def compiled(remat):
        how = Compute(attention="dense", remat=remat)
        return jax.jit(nnx.grad(lambda net: jnp.sin(net.query_hidden(tokens, order, how)).sum())).lower(net).compile()

    none, dots, full = map(compiled, ("none", "dots", "full"))
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (full, dots, none)]
    assert sizes == sorted(set(sizes))
    for program in (dots, full):
        for a, b in zip(jax.tree.leaves(none(net)), jax.tree.leaves(program(net)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max()), rtol=0)


def test_the_parameter_count_is_that_of_the_family(tiny):
    config = tiny(qkv_bias=True)
    D, F, H, K, E, V = 16, 24, 4, 2, 8, 48
    layer = 2 * D + D * H * E * 2 + D * K * E * 2 + 3 * D * F + (H + 2 * K) * E
    assert count(config) == 3 * layer + 2 * V * D + D + D  # two embeddings, final norm, query seed


def test_shapes_declare_the_axes_of_every_parameter(tiny):
    for path, variable in nnx.to_flat_state(shapes(tiny(qkv_bias=True, query_key_norm="full"))):
        assert len(variable.get_metadata()["axes"]) == len(variable.shape), path
