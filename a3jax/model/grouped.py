"""The product of rows with several weights: rows are sorted by their weight, and so many of them are each weight's.

TPUs have a kernel for that, behind `jax.lax.ragged_dot`. What XLA makes of it elsewhere multiplies every row with every
weight: with 8 weights on a CPU, 8 times the arithmetic, measured. There rows go tile by tile instead: a tile is some rows
beside each other and a weight that some of them have, so a tile in which one weight's rows end and another's begin is
computed for both. Of M rows and X weights there are at most M / tile + X - 1 tiles, and a weight without rows is not read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

TILE = 256
"""Rows of a tile at most."""
LEAST = 16
"""Rows of a tile at least, if there are so many."""


def grouped(x_MxI: Array, weight_XxIxO: Array, size_X: Array, native: bool) -> Array:
    """Rows, the first `size[0]` of them times the first weight and so on: M x O; zero behind the last weight's.

    `native` says whether the platform has a kernel for it.
    """
    if native:
        return jax.lax.ragged_dot(x_MxI, weight_XxIxO, size_X)
    return _by_tiles(x_MxI, weight_XxIxO, size_X)


class _Tiles(NamedTuple):
    """At most T tiles, of which the first `number` are some."""

    number: Array
    weight_T: Array
    begin_T: Array
    """A tile's first row."""
    first_T: Array
    """The first row that is the weight's, and no other tile's of that weight."""
    end_T: Array
    """The row after its last one."""
    rows: int
    """Of a tile."""

    def mask(self, t: Array) -> Array:
        """Which rows of a tile count, rows x 1."""
        row = self.begin_T[t] + jnp.arange(self.rows)
        return ((row >= self.first_T[t]) & (row < self.end_T[t]))[:, None]

    def of(self, x_MxI: Array, t: Array) -> Array:
        """A tile's rows."""
        return jax.lax.dynamic_slice_in_dim(x_MxI, self.begin_T[t], self.rows)


def _tiles(size_X: Array, length: int) -> _Tiles:
    weights = len(size_X)
    rows = min(length, max(LEAST, min(TILE, 1 << (max(1, length // (2 * weights)).bit_length() - 1))))
    end_X = jnp.cumsum(size_X)
    start_X = end_X - size_X
    tiles_X = jnp.where(size_X > 0, -(-end_X // rows) - start_X // rows, 0)
    last_X = jnp.cumsum(tiles_X)
    t_T = jnp.arange(-(-length // rows) + weights - 1)
    weight_T = jnp.minimum(jnp.searchsorted(last_X, t_T, side="right"), weights - 1)
    block_T = rows * (start_X[weight_T] // rows + t_T - (last_X - tiles_X)[weight_T])
    first_T = jnp.maximum(start_X[weight_T], block_T)
    end_T = jnp.minimum(end_X[weight_T], block_T + rows)
    return _Tiles(last_X[-1], weight_T, jnp.minimum(block_T, length - rows), first_T, end_T, rows)


@jax.custom_vjp
def _by_tiles(x_MxI: Array, weight_XxIxO: Array, size_X: Array) -> Array:
    return _products(x_MxI, weight_XxIxO, size_X, transposed=False)


def _products(x_MxI: Array, weight_XxIxO: Array, size_X: Array, transposed: bool) -> Array:
    """Rows times their weights or, `transposed`, M x O rows times these turned around."""
    tiles = _tiles(size_X, len(x_MxI))
    contracted = ((1,), (1 if transposed else 0,)), ((), ())

    def tile(t: Array, out_MxO: Array) -> Array:
        product = jax.lax.dot_general(tiles.of(x_MxI, t), weight_XxIxO[tiles.weight_T[t]], contracted)
        new = jnp.where(tiles.mask(t), product, tiles.of(out_MxO, t))
        return jax.lax.dynamic_update_slice_in_dim(out_MxO, new, tiles.begin_T[t], 0)

    width = weight_XxIxO.shape[1 if transposed else 2]
    return jax.lax.fori_loop(0, tiles.number, tile, jnp.zeros((len(x_MxI), width), x_MxI.dtype))


def _forward(x_MxI: Array, weight_XxIxO: Array, size_X: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _by_tiles(x_MxI, weight_XxIxO, size_X), (x_MxI, weight_XxIxO, size_X)


def _backward(saved: tuple[Array, Array, Array], d_out_MxO: Array) -> tuple[Array, Array, None]:
    x_MxI, weight_XxIxO, size_X = saved
    tiles = _tiles(size_X, len(x_MxI))

    def tile(t: Array, d_weight: Array) -> Array:
        masked = jnp.where(tiles.mask(t), tiles.of(x_MxI, t), 0)
        own = jax.lax.dot_general(
            masked, tiles.of(d_out_MxO, t), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return d_weight.at[tiles.weight_T[t]].add(own)

    d_weight = jax.lax.fori_loop(0, tiles.number, tile, jnp.zeros(weight_XxIxO.shape, jnp.float32))
    return _products(d_out_MxO, weight_XxIxO, size_X, transposed=True), d_weight.astype(weight_XxIxO.dtype), None


_by_tiles.defvjp(_forward, _backward)
