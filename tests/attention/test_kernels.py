"""The TPU and GPU kernels with the blocks they really use, in interpret mode, against the dense reference.

Sequences span several blocks and end within one. Tolerances are a few float32 roundings of values near 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from a3jax.attention import attend, flash, interface, splash
from a3jax.attention.blocks import Local, visible_keys
from a3jax.devices.mesh import AXES
from a3jax.ordering import arrange, draw_order, example_keys

KERNELS = {"splash": "tpu", "flash": "gpu"}
L, HEADS, KV_HEADS, WIDTH = 600, 3, 1, 16
PACKED = np.repeat([1, 2, 3, 4, 0], [210, 3, 297, 40, 50])
SEGMENTS = np.stack([np.ones(L, int), PACKED])
OF_A_DEVICE = np.concatenate([np.arange(n, n + L // 8) for n in (L // 8, 6 * L // 8, 9 * L // 8, 14 * L // 8)])
"""Rows of both streams that the second of four devices has (`context_parallel`), most documents' being elsewhere."""


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "splash_attention", functools.partial(splash.splash_attention, interpret=True))
    monkeypatch.setattr(flash, "flash_attention", functools.partial(flash.flash_attention, interpret=True))


@pytest.fixture
def value_and_gradients(monkeypatch):
    """Of the sum of the output times a factor with respect to queries, keys, values and, where they are given, sinks."""

    def run(implementation, heads, start, end, factor, cap=None, local=None):
        monkeypatch.setattr(interface, "platform", lambda: KERNELS.get(implementation, "cpu"))
        return compiled(implementation, cap)(tuple(heads), jnp.asarray(start), jnp.asarray(end), factor, local)

    return run


@functools.cache
def compiled(implementation, cap):
    def weighted(heads, start, end, factor, local):
        sink = heads[3] if heads[3:] else None
        out = attend(*heads[:3], start, end, implementation, cap=cap, local=local, sink_H=sink)
        return (out.astype(jnp.float32) * factor).sum(), out

    return jax.jit(jax.value_and_grad(weighted, has_aux=True))


def inputs(rows, dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(rows)
    shapes = [(batch, rows, HEADS, WIDTH), (batch, L, KV_HEADS, WIDTH), (batch, L, KV_HEADS, WIDTH)]
    heads = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return heads, rng.normal(size=shapes[0]).astype(np.float32)


def both_streams(order):
    """Ranges of content rows, then query rows."""
    start = np.concatenate([order.start, order.start], axis=1)
    return start, np.concatenate([order.group_end, order.group_start], axis=1)


def drawn(group_size, family="random", given=0.3):
    return both_streams(draw_order(example_keys(0, 0, 2), SEGMENTS, family, group_size, given, "successor"))


def check(run, kernel, start, end, dtype=jnp.float32, value=5e-6, gradient=2e-5, cap=None, local=None, sinks=()):
    heads, factor = inputs(start.shape[1], dtype)
    (_, out), gradients = run(kernel, [*heads, *sinks], start, end, factor, cap, local)
    exact = [x.astype(jnp.float32) for x in heads]
    (_, expected), expected_gradients = run("dense", [*exact, *sinks], start, end, factor, cap, local)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=value)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=gradient * max(1, float(abs(b).max())))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", long_after(1, ["random", "spans"]))
@pytest.mark.parametrize("group_size", long_after(3, [1, 4, 64, 3, 8]))
def test_equals_dense_for_every_group_size(value_and_gradients, kernel, family, group_size):
    check(value_and_gradients, kernel, *drawn(group_size, family))


@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_dense_for_mixed_sizes_and_a_first_group_that_sees_nothing(value_and_gradients, kernel):
    rng = np.random.default_rng(0)
    groups = np.stack([rng.permutation(np.repeat(np.arange(L), rng.integers(1, 65, L))[:L]) for _ in SEGMENTS])
    order = jax.vmap(lambda g, s: arrange(g, jnp.zeros(L, bool), s, "successor"))(groups, SEGMENTS)
    assert len(np.unique(order.group_end - order.group_start)) > 10
    start, end = both_streams(order)
    assert (end[:, L] == start[:, L]).all()
    check(value_and_gradients, kernel, start, end)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "rows",
    long_after(2, [OF_A_DEVICE, slice(L, 2 * L), slice(0, L), slice(7, 40)]),
    ids=["of a device", "queries", "content", "a few"],
)
def test_rows_need_not_be_both_streams(value_and_gradients, kernel, rows):
    check(value_and_gradients, kernel, *(x[:, rows] for x in drawn(4)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16(value_and_gradients, kernel):
    check(value_and_gradients, kernel, *drawn(8), jnp.bfloat16, value=0.03, gradient=0.03)


def test_soft_caps(value_and_gradients):
    check(value_and_gradients, "splash", *drawn(4), cap=1.0)


@pytest.mark.parametrize("cap", [pytest.param(1.0, marks=pytest.mark.long), None])
def test_flash_beside_sinks_and_under_local_attention(value_and_gradients, cap):
    """A window of more than one block, in random order; there are rows that see nothing but their sink."""
    order = draw_order(example_keys(0, 0, 2), SEGMENTS, "random", 4, 0.3, "successor")
    rows = jnp.concatenate([order.position, order.query_position], axis=1)
    local = Local.within(150, rows, order.position)
    check(value_and_gradients, "flash", *both_streams(order), cap=cap, local=local, sinks=[jnp.array([-2.0, 0.5, 4.0])])


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_see_nothing_are_zero_and_send_no_gradient_anywhere(value_and_gradients, kernel):
    start, end = drawn(8, given=0.0)
    empty = end == start
    assert empty[0].sum() == 1
    assert empty[1].sum() > 50  # padding, and the first query of every document
    heads, factor = inputs(2 * L)
    (_, out), _ = value_and_gradients(kernel, heads, start, end, factor)
    assert (np.asarray(out)[empty] == 0).all()
    assert (np.asarray(out)[~empty] != 0).all()
    (_, _), gradients = value_and_gradients(kernel, heads, start, end, factor * empty[..., None, None])
    assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_empty_range_may_lie_anywhere_and_an_example_may_have_no_others(value_and_gradients, kernel):
    start, end = drawn(8)
    index = np.arange(2 * L)
    empty = np.stack([index % 3 == 0, index >= 0])
    check(value_and_gradients, kernel, np.where(empty, index % L, start), np.where(empty, index % L, end))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_row_feels_what_lies_beyond_its_end_or_in_another_document(value_and_gradients, kernel):
    start, end = drawn(8)
    (query, key, value), factor = inputs(2 * L)
    (_, before), _ = value_and_gradients(kernel, (query, key, value), start, end, factor)
    slot = 333  # of the second example's third document
    key, value = key.at[:, slot].add(3.0), value.at[:, slot].add(3.0)
    (_, after), _ = value_and_gradients(kernel, (query, key, value), start, end, factor)
    changed = (np.asarray(before) != np.asarray(after)).any((2, 3))
    np.testing.assert_array_equal(changed, (start <= slot) & (slot < end))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dark", ["an earlier document", "later groups"])
def test_blocks_that_no_row_sees_are_never_touched(value_and_gradients, kernel, dark):
    """A NaN in a block that is computed would spread: hiding a key multiplies its value by zero."""
    cut = splash.SPLASH_BLOCK
    slot = np.arange(L)
    segments, poisoned = (slot >= cut) + 1, slot < cut
    if dark == "later groups":
        segments, poisoned = np.ones(L, int), ~poisoned
    order = draw_order(example_keys(0, 0, 1), segments[None], "random", 4, 0.0, "successor")
    (query, key, value), factor = inputs(L, batch=1)
    value = jnp.where(poisoned[:, None, None], jnp.nan, value)
    factor[:, poisoned] = np.nan
    (_, out), gradients = value_and_gradients(kernel, (query, key, value), order.start, order.group_end, factor)
    # Later rows do see earlier keys, and send them their NaN.
    for result in (out, *(gradients if dark == "an earlier document" else gradients[:1])):
        finite = np.isfinite(np.asarray(result)).all((0, 2, 3))
        np.testing.assert_array_equal(finite, ~poisoned)


def test_splash_in_other_blocks_computes_the_same(value_and_gradients, monkeypatch):
    monkeypatch.setattr(interface, "splash_block", lambda *_: 256)
    compiled.cache_clear()
    check(value_and_gradients, "splash", *drawn(4))
    compiled.cache_clear()


def blocks_between_the_first_and_the_last_seen(start_R, end_R, rows, keys):
    """By brute force: rows / `rows` x L / `keys` bool."""
    slot = np.arange(L)
    visible = (slot >= start_R[:, None]) & (slot < end_R[:, None])
    seen = visible.reshape(len(start_R) // rows, rows, L // keys, keys).any((1, 3))
    return (np.cumsum(seen, 1) > 0) & (np.cumsum(seen[:, ::-1], 1)[:, ::-1] > 0)


ROWS, KEYS = 20, 12


def test_flash_computes_just_the_blocks_between_the_first_and_the_last_seen():
    start, end = drawn(8)
    first, last = visible_keys(jnp.asarray(start), jnp.asarray(end), ROWS, KEYS)
    blocks, count = (np.asarray(x) for x in flash.seeing_rows(first, last, L // KEYS))
    index = np.arange(L // KEYS)
    for b in range(2):
        expected = blocks_between_the_first_and_the_last_seen(start[b], end[b], ROWS, KEYS)
        np.testing.assert_array_equal((index >= first[b][:, None]) & (index < last[b][:, None]), expected)
        for j in index:
            np.testing.assert_array_equal(np.sort(blocks[b, j, : count[b, j]]), np.flatnonzero(expected[:, j]))


def test_splash_computes_just_the_blocks_between_the_first_and_the_last_seen_and_loads_no_others():
    start, end = (x[1] for x in drawn(8))
    expected = blocks_between_the_first_and_the_last_seen(start, end, ROWS, KEYS)
    unseeing = ~expected.any(1)
    assert unseeing.any()
    expected[unseeing, 0] = True  # Splash needs one
    lit = splash.lit_blocks(jnp.asarray(start), jnp.asarray(end), ROWS, KEYS, L)
    by_row, by_key = (jax.tree.map(lambda x: np.asarray(x)[0], table) for table in splash.tables(lit))
    for table, along_rows in [(by_row, True), (by_key, False)]:
        compute, place = (x if along_rows else x.T for x in (table.block_mask, table.data_next))
        outer, inner = np.nonzero(compute)
        np.testing.assert_array_equal(place[outer, inner], inner)
        np.testing.assert_array_equal(compute, expected if along_rows else expected.T)
        # A block is loaded where its place differs from the one before: each lit block once per head, and after the
        # last head's last one the first again.
        loads = 1 + np.count_nonzero(np.diff(np.tile(place.ravel(), 2)))
        assert loads <= 2 * expected.sum() + 1


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width", "dtype", "more", "gpu"),
    [
        (4096, 32, 8, 128, "bfloat16", False, "NVIDIA H100 80GB HBM3"),
        (1000, 9, 3, 64, "bfloat16", True, "NVIDIA B200"),
        (600, 4, 4, 80, "float32", False, "NVIDIA B200"),
        (150, 2, 1, 256, "float32", True, "NVIDIA H100 80GB HBM3"),
    ],
)
def test_auto_lowers_to_flash_for_a_cuda_device(monkeypatch, length, heads, kv_heads, width, dtype, more, gpu):
    """Three Triton kernels, forward and backward, and keys that are never repeated for the query heads that share them.

    The same with `more`: local attention, soft caps and sinks.
    """
    monkeypatch.undo()  # not in interpret mode
    shapes = [(2, 2 * length, heads, width), (2, length, kv_heads, width), (2, length, kv_heads, width)]
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    ranges = [jax.ShapeDtypeStruct((2, 2 * length), jnp.int32)] * 2
    device = AbstractDevice(gpu, num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,) * len(AXES), AXES, (AxisType.Auto,) * len(AXES), abstract_device=device)

    def loss(*args):
        beside = {"cap": 50.0, "local": Local.within(100, args[3], args[5]), "sink_H": args[6]} if more else {}
        return attend(*args[:5], **beside).astype(jnp.float32).sum()

    positions, sinks = jax.ShapeDtypeStruct((2, length), jnp.int32), jax.ShapeDtypeStruct((heads,), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 6))).trace(*arrays, *ranges, positions, sinks)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 3
    if heads != kv_heads:
        assert f"tensor<2x{length}x{heads}x" not in text
