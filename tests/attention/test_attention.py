"""Key-range attention against a loop over rows, and every implementation that takes any ranges against the dense one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from chosen import long_after

from a3jax.attention import attend, chunked, flash, interface
from a3jax.attention.blocks import Local
from a3jax.ordering import draw_order, example_keys

IMPLEMENTATIONS = ("dense", "chunked", "flash")
L, HEADS, KV_HEADS, WIDTH = 44, 4, 2, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that divide neither the length nor, for `chunked`, each other; `flash` in interpret mode."""
    monkeypatch.setattr(chunked, "ROW_BLOCK", 12)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 8)
    monkeypatch.setattr(flash, "forward_tiles", lambda *_: flash.Tiles(32, 16, 4, 1))
    monkeypatch.setattr(flash, "backward_tiles", lambda *_: flash.Tiles(16, 32, 4, 1))
    monkeypatch.setattr(flash, "flash_attention", functools.partial(flash.flash_attention, interpret=True))
    monkeypatch.setattr(interface, "platform", lambda: "gpu")


def inputs(rows=L, keys=L, heads=HEADS, kv_heads=KV_HEADS, batch=2, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [(batch, rows, heads, WIDTH), (batch, keys, kv_heads, WIDTH), (batch, keys, kv_heads, WIDTH)]
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype) for shape in shapes]


def by_hand(query, key, value, start, end, cap=None, local=None, sink=None):
    """Float64, one row and one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    shared = query.shape[2] // key.shape[2]
    for b, r, h in np.ndindex(*query.shape[:3]):
        seen = np.arange(int(start[b, r]), int(end[b, r]))
        if local is not None:
            low, high, position = (np.asarray(x)[b] for x in local)
            seen = seen[(position[seen] > low[r]) & (position[seen] < high[r])]
        scores = key[b, seen, h // shared] @ query[b, r, h] / np.sqrt(query.shape[3])
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        if len(scores):
            weights = np.exp(scores - scores.max())
            total = weights.sum() + (0 if sink is None else np.exp(float(sink[h]) - scores.max()))
            out[b, r, h] = (weights / total) @ value[b, seen, h // shared]
    return out


@functools.cache
def value_and_gradients(implementation, cap=None):
    def weighted(heads, start, end, factor, local=None):
        out = attend(*heads[:3], start, end, implementation, cap=cap, local=local, sink_H=heads[3] if heads[3:] else None)
        return (out.astype(jnp.float32) * factor).sum(), out

    compiled = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    return lambda query, key, value, *rest, sinks=(): compiled((query, key, value, *sinks), *rest)


def check(query, key, value, start, end, tolerance=2e-6, cap=None, local=None, sinks=()):
    start, end = jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32)
    factor = np.random.default_rng(9).normal(size=query.shape).astype(np.float32)
    expected = by_hand(query, key, value, np.asarray(start), np.asarray(end), cap, local, *sinks)
    results = [
        value_and_gradients(name, cap)(query, key, value, start, end, factor, local, sinks=sinks) for name in IMPLEMENTATIONS
    ]
    for (_, out), gradients in results:
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance)
        for a, b in zip(results[0][1], gradients, strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=10 * tolerance)
    return results


def both_streams(order):
    """Ranges of content rows, then query rows."""
    start = np.concatenate([order.start, order.start], axis=1)
    return start, np.concatenate([order.group_end, order.group_start], axis=1)


@pytest.mark.parametrize("group_size", [1, 3, 4, 8, 64])
def test_every_implementation_equals_the_loop_over_rows_for_every_group_size(group_size):
    segments = np.array([[1] * L, [1] * 9 + [2] * 3 + [3] * 25 + [0] * 7])
    order = draw_order(example_keys(0, 0, 2), segments, "random", group_size, 0.3, "successor")
    query, key, value = inputs(rows=2 * L)
    check(query, key, value, *both_streams(order))


@pytest.mark.parametrize("seed", range(4))
def test_every_implementation_takes_any_ranges(seed):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, L, (2, 2 * L))
    end = np.minimum(L, start + rng.integers(0, [[3], [L]], start.shape))  # short and many empty; long
    check(*inputs(rows=2 * L, seed=seed), start, end)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 2)])
def test_query_heads_share_key_value_heads_in_order(heads, kv_heads):
    query, key, value = inputs(heads=heads, kv_heads=kv_heads)
    check(query, key, value, np.zeros((2, L)), np.broadcast_to(np.arange(L), (2, L)))


@pytest.mark.parametrize(("rows", "keys"), long_after(2, [(13, 24), (1, 5), (1, 1), (5, 19), (12, 8)]))
def test_lengths_need_not_fit_the_blocks(rows, keys):
    rng = np.random.default_rng(rows)
    start = rng.integers(0, keys, (2, rows))
    check(*inputs(rows=rows, keys=keys), start, start + rng.integers(0, keys - start + 1))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_with_an_empty_range_gives_zero_and_receives_no_gradient(implementation):
    query, key, value = inputs()
    start = np.full((2, L), 5, np.int32)
    end = np.where(np.arange(L) % 3 == 0, 5, 30).astype(np.int32) * np.ones((2, 1), np.int32)
    end[1] = 5  # and a whole example that sees nothing
    (_, out), (d_query, d_key, d_value) = value_and_gradients(implementation)(query, key, value, start, end, 1.0)
    empty = end == start
    assert (np.asarray(out)[empty] == 0).all()
    assert (np.asarray(d_query)[empty] == 0).all()
    assert (np.asarray(out)[~empty] != 0).all()
    for gradient in (d_key, d_value):
        seen = np.zeros((2, L), bool)
        seen[0, 5:30] = True
        assert (np.asarray(gradient)[~seen] == 0).all()
        assert (np.asarray(gradient)[seen] != 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_lies_outside_the_range_cannot_matter(implementation):
    query, key, value = inputs()
    start, end = np.full((2, L), 7, np.int32), np.full((2, L), 21, np.int32)
    outside = (np.arange(L) < 7) | (np.arange(L) >= 21)
    wild = np.where(outside[:, None, None], 1e4, 0.0).astype(np.float32)
    run = jax.jit(attend, static_argnums=5)
    expected = run(query, key, value, start, end, implementation)
    np.testing.assert_array_equal(run(query, key + wild, value - wild, start, end, implementation), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(implementation):
    query, key, value = inputs()
    start, end = np.zeros((2, L), np.int32), np.full((2, L), L, np.int32)
    (_, out), gradients = value_and_gradients(implementation)(query * 1e3, key * 1e3, value, start, end, 1.0)
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    np.testing.assert_allclose(out, by_hand(query * 1e3, key * 1e3, value, start, end), atol=1e-3)


@pytest.mark.parametrize(
    ("window", "cap", "sinks"),
    long_after(1, [(6, 0.5, True), (6, None, False), (None, 0.5, False), (None, None, True)]),
)
def test_local_attention_soft_caps_and_sinks_in_any_order(window, cap, sinks):
    """Two documents in random order; a row may have nothing near it in its range."""
    segments = np.array([[1] * L, [1] * 20 + [2] * (L - 20)])
    order = draw_order(example_keys(0, 0, 2), segments, "random", 3, 0.1, "successor")
    rows = jnp.concatenate([order.position, order.query_position], axis=1)
    local = None if window is None else Local.within(window, rows, order.position)
    sinks = [jnp.array([-4.0, 0.0, 1.0, 5.0])] if sinks else []
    check(*inputs(rows=2 * L), *both_streams(order), cap=cap, local=local, sinks=sinks)


@pytest.mark.parametrize("implementation", long_after(1, IMPLEMENTATIONS))
def test_the_gradients_of_sinks_are_those_of_a_key_without_a_value_that_every_row_sees(implementation):
    """In float64, by PyTorch; some rows see nothing else, and are zero."""
    query, key, value = inputs()
    sink, factor = jnp.array([-4.0, 0.0, 1.0, 5.0]), np.random.default_rng(9).normal(size=query.shape)
    start, end = np.zeros((2, L), np.int32), np.broadcast_to(np.arange(L, dtype=np.int32) // 2, (2, L))
    factor = factor.astype(np.float32)
    (_, out), found = value_and_gradients(implementation)(query, key, value, start, end, factor, sinks=[sink])
    leaves = [torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in (query, key, value, sink)]
    q, k, v, s = leaves
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 2) for x in (k, v))
    scores = torch.einsum("brhe,blhe->bhrl", q, k) * WIDTH**-0.5
    hidden = torch.arange(L) >= torch.from_numpy(end.copy())[:, None, :, None]
    both = torch.cat([scores.masked_fill(hidden, -torch.inf), s[None, :, None, None].expand(2, -1, L, 1)], -1)
    expected = torch.einsum("bhrl,blhe->brhe", both.softmax(-1)[..., :-1], v)
    (expected * torch.from_numpy(factor)).sum().backward()
    np.testing.assert_allclose(out, expected.detach().numpy(), atol=2e-6)
    for ours, theirs in zip(found, leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=2e-5)


def test_bfloat16_keeps_its_dtype_and_is_close():
    query, key, value = inputs(dtype=jnp.bfloat16)
    results = check(query, key, value, np.zeros((2, L)), np.broadcast_to(np.arange(L), (2, L)), tolerance=0.03)
    assert {x.dtype for (_, out), gradients in results for x in (out, *gradients)} == {jnp.dtype("bfloat16")}


def test_chunked_skips_key_blocks_that_no_row_sees(monkeypatch):
    """Counted by running the loops in Python."""
    taken = []
    take = chunked._take
    monkeypatch.setattr(chunked, "_take", lambda x, j: taken.append(int(j)) or take(x, j))
    query, key, value = inputs(rows=12, keys=40)
    start, end = jnp.full((2, 12), 9, jnp.int32), jnp.full((2, 12), 17, jnp.int32)
    with jax.disable_jit():
        attend(query, key, value, start, end, "chunked")
    assert sorted(set(taken)) == [1, 2]
    taken.clear()
    local = Local.within(4, jnp.full((2, 12), 30), jnp.broadcast_to(jnp.arange(40), (2, 40)))
    with jax.disable_jit():
        attend(query, key, value, start * 0, end + 23, "chunked", local=local)
    assert sorted(set(taken)) == [3, 4]  # slots in order: 27 to 33 are near
