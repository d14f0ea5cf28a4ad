"""A batch whose sequences come and go between passes.

A row of a batch knows nothing of the others: its order, its tokens, its keys and values, its settings, its random key and the
number of its pass are its own. So a sequence begins by itself, with the pass that reads what is given of it, and the row that
comes of it is then put among those on their way; whenever it came, it is filled as it would be alone.

Programs are compiled for a number of rows, of slots, and of restricted places. All are powers of two, so that there are few,
and a batch grows and shrinks by factors of two, so that few lead from one size to another. A row that nobody has is
computed like any other; what comes of it is not looked at.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode.cached import Extent
from a3jax.decode.loop import Filled, Rows, next_pass
from a3jax.decode.settings import Decoding
from a3jax.devices.mesh import constrain, filled_up
from a3jax.model.cache import Cache
from a3jax.model.network import Network


class Seat:
    """Who has a row: a sequence, how far it is, and what it needs room for."""

    def __init__(self, name: int, begun: Rows) -> None:
        self.name, self.passes = name, 1
        self.extent = begun.plan.extent
        self.slots, self.places = _room(begun)


class Batch:
    """At most `most` sequences that are filled together; they have their decoding's `program` in common."""

    def __init__(self, network: Network, decoding: Decoding, most: int) -> None:
        self._network = network
        self._decoding = decoding
        self._most = most
        self._rows: Rows | None = None
        self._seats: list[Seat | None] = []

    @property
    def names(self) -> list[int]:
        """Of the sequences, each of which has a row."""
        return [seat.name for seat in self._taken]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self._seats)

    @property
    def size_with_one_more(self) -> int:
        """How many there are if another sequence joins."""
        return max(self.size, self._rounded(len(self.names) + 1))

    def put(self, name: int, begun: Rows) -> None:
        """Give a row to a sequence after its first pass, the first of `begun`, which is not to be used any more."""
        seat, begun = Seat(name, begun), _arrays(begun)
        if self._rows is None:
            self._rows, self._seats = begun, [seat]
            return
        rows = _widened(self._rows, range(self.size), _room(begun))
        begun = _widened(begun, [0], _room(rows))
        if None not in self._seats:
            grown = self._rounded(self.size + 1)
            rows = _laid(rows, _owners(row % self.size for row in range(grown)), *_room(rows))
            self._seats += [None] * (grown - self.size)
        row = self._seats.index(None)
        self._rows, self._seats[row] = _put(rows, jnp.int32(row), begun), seat

    def free(self, name: int) -> None:
        """Take a sequence's row from it."""
        self._seats = [None if seat is not None and seat.name == name else seat for seat in self._seats]
        if not self._taken:
            self._rows, self._seats = None, []

    def advance(self) -> dict[int, Filled]:
        """Make a pass, and say how each sequence stands, in arrays of one row."""
        if self._rows is None:
            return {}
        self._settle()
        plan = self._rows.plan
        extent = Extent(*map(max, zip(*(seat.extent for seat in self._taken))))
        number_B = np.ones(len(plan.length_B), np.int32)
        for row, seat in enumerate(self._seats):
            if seat is not None:
                seat.passes += 1
                number_B[row] = seat.passes
        rows = self._rows._replace(plan=plan._replace(extent=extent))
        rows = next_pass(self._network, rows, jax.device_put(number_B), self._decoding)
        self._rows = _arrays(rows)
        filled = rows.filled()
        return {
            seat.name: Filled(*(x_BxL[row : row + 1] for x_BxL in filled))
            for row, seat in enumerate(self._seats)
            if seat is not None
        }

    @property
    def _taken(self) -> list[Seat]:
        return [seat for seat in self._seats if seat is not None]

    def _settle(self) -> None:
        """Halve the rows, or their room, where there is twice what is needed."""
        assert self._rows is not None
        room, taken = _room(self._rows), self._taken
        size = max(self._rounded(-(-self.size // 2)), self._rounded(len(taken)))
        if size == self.size:
            needed = max(seat.slots for seat in taken), max(seat.places for seat in taken)
            room = tuple(max(own // 2, need) for own, need in zip(room, needed))
        if (size, room) != (self.size, _room(self._rows)):
            kept = sorted(range(self.size), key=lambda row: self._seats[row] is None)[:size]
            self._rows, self._seats = _laid(self._rows, _owners(kept), *room), [self._seats[row] for row in kept]

    def _rounded(self, count: int) -> int:
        return min(self._most, 1 << (count - 1).bit_length())


def _arrays(rows: Rows) -> Rows:
    """What there is of each row: all but the extent, which is of a whole batch."""
    return rows._replace(plan=rows.plan._replace(extent=None))  # type: ignore[arg-type]


def _room(rows: Rows) -> tuple[int, ...]:
    """Slots and restricted places of a row."""
    return rows.state.tokens_BxL.shape[1], rows.plan.restriction.place_BxP.shape[1]


def _widened(rows: Rows, kept: Iterable[int], needed: tuple[int, ...]) -> Rows:
    """The rows `kept` with at least the room needed, doubled as often as it takes."""
    kept = list(kept)
    while any(own < need for own, need in zip(_room(rows), needed)):
        room = (2 * own if own < need else own for own, need in zip(_room(rows), needed))
        rows = _laid(rows, _owners(kept), *room)
    return rows


def _owners(rows: Iterable[int]) -> Array:
    """Which rows to take, as many as the mesh in use divides."""
    return jax.device_put(np.array(filled_up(list(rows)), np.int32))


def _by_row(change: Callable[..., Array], *rows: Rows) -> Rows:
    """`change` of every array, behind the axis that rows are of."""
    axes = jax.tree.map(lambda _: 0, rows[0])
    axes = axes._replace(state=axes.state._replace(cache=Cache(1, 1, 0)))  # type: ignore[arg-type]
    return jax.tree.map(change, axes, *rows)


@functools.partial(jax.jit, donate_argnames="rows")
def _put(rows: Rows, row: Array, begun: Rows) -> Rows:
    """The first row of `begun` in the place of a row."""

    def put(axis: int, x: Array, new: Array) -> Array:
        at = (*[slice(None)] * axis, row)
        return x.at[at].set(jnp.take(new, 0, axis))

    return _by_row(put, rows, begun)


@functools.partial(jax.jit, static_argnames=("slots", "places"))
def _laid(rows: Rows, owner_B: Array, slots: int, places: int) -> Rows:
    """The rows `owner`, with room for so many slots and restricted places.

    Behind its last slot an order goes on as it ends, which is with nothing to predict.
    """
    plan, state, carry = _by_row(lambda axis, x: jnp.take(x, owner_B, axis), rows)
    place_L, own = jnp.arange(slots), state.tokens_BxL.shape[1]

    def fit(x: Array, size: int = slots, axis: int = 1, **how: Any) -> Array:
        x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)], **how)

    def numbered(x_BxL: Array) -> Array:
        return jnp.where(place_L < own, fit(x_BxL), place_L)

    cached = slots if state.cache.slots else 0
    restriction = plan.restriction._replace(
        place_BxP=fit(plan.restriction.place_BxP, places, constant_values=-1),
        allowed_BxPxV=fit(plan.restriction.allowed_BxPxV, places),
    )
    plan = plan._replace(
        tokens_BxL=fit(plan.tokens_BxL),
        order=jax.tree.map(lambda x_BxL: fit(x_BxL, mode="edge"), plan.order),
        restriction=restriction,
    )
    key, value = (constrain(fit(x, cached, axis=3), "NxBxKxLxE") for x in (state.cache.key, state.cache.value))
    cache = Cache(key, value, fit(state.cache.position, cached))
    state = state._replace(
        cache=cache,
        tokens_BxL=fit(state.tokens_BxL),
        log_probs_BxL=fit(state.log_probs_BxL),
        passes_BxL=fit(state.passes_BxL, constant_values=-1),
        slot_BxL=numbered(state.slot_BxL),
        place_BxL=numbered(state.place_BxL),
    )
    return Rows(plan, state, carry)
