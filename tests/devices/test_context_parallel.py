"""Which rows lie on which device; that gathered keys are in slot order, `test_mesh` shows."""

import jax.numpy as jnp
import numpy as np
import pytest

from a3jax.decode.cached import plan
from a3jax.devices import context_parallel
from a3jax.errors import UserError
from a3jax.evaluate.continuations import score
from a3jax.ordering import draw_order, example_keys

B, L, C = 2, 24, 4


@pytest.fixture(autouse=True)
def four_devices(monkeypatch):
    monkeypatch.setattr(context_parallel, "devices", lambda: C)
    monkeypatch.setattr(context_parallel, "lay", lambda x, *_: x)
    monkeypatch.setattr(context_parallel, "constrain", lambda x, _: x)


def by_device(x_BxRx):
    return np.split(np.asarray(x_BxRx), C, axis=1)


def test_every_device_holds_a_block_from_either_end():
    slots = jnp.broadcast_to(jnp.arange(L), (B, L))
    ends = [(0, 21), (3, 18), (6, 15), (9, 12)]
    for held, (low, high) in zip(by_device(context_parallel.spread(slots)), ends, strict=True):
        np.testing.assert_array_equal(held, B * [[low, low + 1, low + 2, high, high + 1, high + 2]])


def test_a_device_sees_as_many_keys_as_any_other():
    order = draw_order(example_keys(0, 0, B), jnp.ones((B, L), jnp.int32), "in_order", 1, 0.0, "successor")
    for end, total in [(order.group_end, L * (L + 1) / 2), (order.group_start, L * (L - 1) / 2)]:
        seen = [int(held.sum()) for held in by_device(context_parallel.spread(end))]
        assert seen == [B * total / C] * C


def test_a_slot_is_where_it_was_spread_to():
    slots = jnp.broadcast_to(jnp.arange(L), (B, L))
    where = context_parallel.place(slots, L)
    np.testing.assert_array_equal(np.take_along_axis(context_parallel.spread(slots), where, axis=1), slots)


def test_what_keeps_a_cache_does_not_split_windows():
    for call in (lambda: plan([], [], [], "successor", None), lambda: score(None, [])):
        with pytest.raises(UserError, match=r"mesh\.context is 4; set it to 1"):
            call()


def test_streams_lie_side_by_side_and_come_apart_again():
    rng = np.random.default_rng(0)
    content, query = rng.normal(size=(2, B, L, 3))
    rows = context_parallel.streams(jnp.asarray(content), jnp.asarray(query))
    for held, one, other in zip(by_device(rows), by_device(content), by_device(query), strict=True):
        np.testing.assert_array_equal(held, np.concatenate([one, other], axis=1).astype(held.dtype))
    np.testing.assert_array_equal(context_parallel.first(rows, L), content.astype(np.float32))
    np.testing.assert_array_equal(context_parallel.rest(rows, L), query.astype(np.float32))
    np.testing.assert_array_equal(context_parallel.first(rows, 2 * L), rows)
    np.testing.assert_array_equal(context_parallel.rest(rows, 0), rows)


def test_without_a_mesh_nothing_changes(monkeypatch):
    monkeypatch.undo()
    x = jnp.arange(B * L * 4 * 5).reshape(B, L, 4, 5)
    for function in (context_parallel.spread, context_parallel.gathered):
        assert function(x) is x
    np.testing.assert_array_equal(context_parallel.first(x, 7), x[:, :7])
    np.testing.assert_array_equal(context_parallel.rest(x, 7), x[:, 7:])
