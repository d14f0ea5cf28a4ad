"""Flash attention for NVIDIA GPUs, in Pallas for Triton, with one range of keys per row.

Blocks of rows and keys that no range joins are never computed: a program that owns rows loops from the first to the last
key block that one of them sees, and one that owns keys goes through a list of the row blocks that see some of them. Both
are data, so one compiled program serves any ranges. Query heads read the key-value head they share in place.

The algorithm is that of Dao (arXiv 2307.08691), softmax statistics in float32 and base 2: the backward pass rebuilds each
block's weights from the saved log-sum-exp, in one kernel for queries and one for keys and values. Products of float32
inputs are TF32, XLA's own default on these GPUs.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from a3jax.attention.blocks import ATTENTION, Attended, Local, visible_keys
from a3jax.attention.cap import cap_slope, capped

BLOCK = 128
"""The largest block of rows or keys; inputs are padded to whole ones, or to a power of two below."""
SMALLEST = 16
"""The smallest side of a matrix product in Triton."""

_dot = functools.partial(triton.dot, allow_tf32=True)
_EMPTY = -1e30
"""The running maximum before any key was seen."""
_HIDDEN = 2 * _EMPTY
"""A hidden key's score: below `_EMPTY`, so that its weight is exactly zero even in a row that sees nothing."""
Ref = Any
"""What Pallas hands a kernel for each of its inputs and outputs."""


class Tiles(NamedTuple):
    """How a kernel is cut: rows and keys per block, Triton's warps per program and stages of its load pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


class _Seen(NamedTuple):
    """What rows see: their ranges and, in layers with local attention, between which positions."""

    start: Array  # B x R
    end: Array
    local: Local | None

    @property
    def of_rows(self) -> tuple[Array, ...]:
        """B x R each."""
        return (self.start, self.end, *(() if self.local is None else self.local[:2]))

    @property
    def of_keys(self) -> tuple[Array, ...]:
        """B x L each."""
        return () if self.local is None else (self.local.position,)


class Scores(NamedTuple):
    """What becomes of the products of queries and keys, in base 2."""

    scale: float
    cap: float | None


def flash_attention(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    cap: float | None = None,
    local: Local | None = None,
    interpret: bool = False,
) -> Attended:
    """See `a3jax.attention.attend`. Blocks of scores live in registers only."""
    rows, width = query_BxRxHxE.shape[1], query_BxRxHxE.shape[3]
    of_scores = Scores(math.log2(math.e) * width**-0.5, None if cap is None else math.log2(math.e) * cap)
    heads = (_pad(_pad(x, 1), 3) for x in (query_BxRxHxE, key_BxLxKxE, value_BxLxKxE))
    seen = _Seen(*jax.tree.map(lambda x: _pad(x, 1), (start_BxR, end_BxR, local)))
    out, lse = _attention(of_scores, interpret, *heads, seen)
    return Attended(out[:, :rows, :, :width], lse[:, :rows])


def forward_tiles(width: int, dtype: jnp.dtype) -> Tiles:
    """For the forward kernel at this (padded) head width.

    Chosen by compiling for compute capabilities 8.0 to 12.0: shared memory fits the smallest of them (99 KiB), and in
    bfloat16, at widths of 64 and 128, no kernel spills more than 16 bytes of registers.
    """
    row = width * dtype.itemsize
    if row <= 256:
        return Tiles(128, 64, 4 if row <= 128 else 8, 3)
    return Tiles(64, 32, 8, 2) if row <= 512 else Tiles(16, 32, 4, 1)


def backward_tiles(width: int, dtype: jnp.dtype) -> Tiles:
    """For both backward kernels, which hold twice the accumulators of the forward one."""
    row = width * dtype.itemsize
    if row <= 256 and dtype.itemsize <= 2:
        return Tiles(64, 64, 4 if row <= 128 else 8, 2)
    return Tiles(32, 32, 8, 1) if row <= 512 else Tiles(16, 32, 4, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(how: Scores, interpret: bool, query: Array, key: Array, value: Array, seen: _Seen) -> tuple[Array, Array]:
    return _forward(how, interpret, query, key, value, seen)[0]


def _forward(
    how: Scores, interpret: bool, query: Array, key: Array, value: Array, seen: _Seen
) -> tuple[tuple[Array, Array], tuple]:
    (B, R, H, E), L = query.shape, key.shape[1]
    tiles = _fit(forward_tiles(E, query.dtype), R, L)
    first, last = visible_keys(seen.start, seen.end, tiles.rows, tiles.keys, seen.local)
    spec = _RowSpecs(query, key, tiles)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, how=how, tiles=tiles),
        grid=spec.grid,
        in_specs=[spec.block, spec.keys, spec.keys, *spec.seen(seen), spec.bound, spec.bound],
        out_specs=[spec.block, spec.statistic],
        out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((B, H, R), jnp.float32)],
        **_options("flash_forward", tiles, interpret),
    )(query, key, value, *seen.of_rows, *seen.of_keys, first, last)
    out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, ATTENTION)
    return (out, lse.swapaxes(1, 2) * math.log(2)), (query, key, value, seen, out, lse)


def _backward(how: Scores, interpret: bool, saved: tuple, d_attended: tuple[Array, Array]) -> tuple:
    (query, key, value, seen, out, lse), (d_out, d_lse) = saved, d_attended
    (_, R, _, E), (_, L, K, _) = query.shape, key.shape
    along = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    delta = (along - d_lse).swapaxes(1, 2)  # a weight is what the log-sum-exp moves by with its score
    tiles = _fit(backward_tiles(E, query.dtype), R, L)
    first, last = visible_keys(seen.start, seen.end, tiles.rows, tiles.keys, seen.local)
    spec = _RowSpecs(query, key, tiles)
    d_query = pl.pallas_call(
        functools.partial(_d_query_kernel, how=how, tiles=tiles),
        grid=spec.grid,
        in_specs=[
            *(spec.block, spec.keys, spec.keys, *spec.seen(seen), spec.bound, spec.bound),
            *(spec.block, spec.statistic, spec.statistic),
        ],
        out_specs=spec.block,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        **_options("flash_d_query", tiles, interpret),
    )(query, key, value, *seen.of_rows, *seen.of_keys, first, last, d_out, lse, delta)

    blocks, count = seeing_rows(first, last, L // tiles.keys)
    groups = query.shape[2] // K
    block = pl.BlockSpec((None, tiles.keys, None, E), lambda j, k, b: (b, j, k, 0))
    rows = pl.BlockSpec((None, R, groups, E), lambda j, k, b: (b, 0, k, 0))
    ranges = pl.BlockSpec((None, R), lambda j, k, b: (b, 0))
    positions = pl.BlockSpec((None, tiles.keys), lambda j, k, b: (b, j))
    statistic = pl.BlockSpec((None, groups, R), lambda j, k, b: (b, k, 0))
    d_key, d_value = pl.pallas_call(
        functools.partial(_d_key_kernel, how=how, tiles=tiles, groups=groups),
        grid=(L // tiles.keys, K, query.shape[0]),
        in_specs=[
            *(rows, block, block, *[ranges for _ in seen.of_rows], *[positions for _ in seen.of_keys]),
            pl.BlockSpec((None, None, blocks.shape[2]), lambda j, k, b: (b, j, 0)),
            pl.BlockSpec((None, None), lambda j, k, b: (b, j)),
            *(rows, statistic, statistic),
        ],
        out_specs=[block, block],
        out_shape=[jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)],
        **_options("flash_d_key_value", tiles, interpret),
    )(query, key, value, *seen.of_rows, *seen.of_keys, blocks, count, d_out, lse, delta)
    return d_query, d_key, d_value, None


_attention.defvjp(_forward, _backward)


def seeing_rows(first_BxI: Array, last_BxI: Array, key_blocks: int) -> tuple[Array, Array]:
    """For every key block the row blocks that see it, those before all others, B x J x I, and their number, B x J."""
    index_J = jnp.arange(key_blocks)[:, None]
    sees_BxJxI = (first_BxI[:, None] <= index_J) & (index_J < last_BxI[:, None])
    return jnp.argsort(~sees_BxJxI, axis=-1).astype(jnp.int32), sees_BxJxI.sum(-1, dtype=jnp.int32)


class _RowSpecs:
    """What a program that owns one block of rows of one query head is given."""

    def __init__(self, query: Array, key: Array, tiles: Tiles):
        (B, R, H, E), (_, L, K, _) = query.shape, key.shape
        self.grid = (R // tiles.rows, H, B)
        self.block = pl.BlockSpec((None, tiles.rows, None, E), lambda i, h, b: (b, i, h, 0))
        self.keys = pl.BlockSpec((None, L, None, E), lambda i, h, b: (b, 0, jax.lax.div(h, H // K), 0))
        self.range = pl.BlockSpec((None, tiles.rows), lambda i, h, b: (b, i))
        self.bound = pl.BlockSpec((None, None), lambda i, h, b: (b, i))
        self.position = pl.BlockSpec((None, L), lambda i, h, b: (b, 0))
        self.statistic = pl.BlockSpec((None, None, tiles.rows), lambda i, h, b: (b, h, i))

    def seen(self, seen: _Seen) -> list[pl.BlockSpec]:
        """Of what rows see: their own part of it, and all that is of keys."""
        return [*[self.range for _ in seen.of_rows], *[self.position for _ in seen.of_keys]]


class _SeenRefs(NamedTuple):
    """`_Seen`, as a kernel is given it."""

    of_rows: tuple[Ref, ...]
    of_keys: tuple[Ref, ...]

    def visible(self, rows: Any, keys: Any, slot: Array) -> Array:
        """Which of these keys, whose slots are `slot`, these rows see: rows x keys bool."""
        start, end, *window = (ref[rows][:, None] for ref in self.of_rows)
        visible = (slot >= start) & (slot < end)
        for low, high, position in zip(window[:1], window[1:], self.of_keys):
            visible &= (position[keys][None] > low) & (position[keys][None] < high)
        return visible


def _split(refs: tuple[Ref, ...], others: int) -> tuple[list[Ref], _SeenRefs]:
    """Of a kernel's references those of what rows see, behind queries, keys and values; `others` come after them."""
    own, seen, rest = refs[:3], refs[3 : len(refs) - others], refs[len(refs) - others :]
    return [*own, *rest], _SeenRefs(seen[:4], seen[4:])


_ALL = slice(None)


def _forward_kernel(*refs: Ref, how: Scores, tiles: Tiles) -> None:
    (query_ref, key_ref, value_ref, first_ref, last_ref, out_ref, lse_ref), seen = _split(refs, 4)
    query = query_ref[...]

    def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = carry
        keys = pl.ds(j * tiles.keys, tiles.keys)
        value = value_ref[keys, :]
        scores = _scores(query, key_ref[keys, :], seen, (_ALL, keys, j * tiles.keys), how)
        new_top = jnp.maximum(top, scores.max(1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        out = out * shrink[:, None] + _dot(weights.astype(value.dtype), value)
        return new_top, total * shrink + weights.sum(1), out

    rows = query.shape[0]
    empty = (jnp.full(rows, _EMPTY, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(query.shape, jnp.float32))
    top, total, out = jax.lax.fori_loop(first_ref[...], last_ref[...], key_block, empty)
    total = jnp.where(total > 0, total, 1.0)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = top + jnp.log2(total)


def _d_query_kernel(*refs: Ref, how: Scores, tiles: Tiles) -> None:
    (query_ref, key_ref, value_ref, first_ref, last_ref, d_out_ref, lse_ref, delta_ref, d_query_ref), seen = _split(refs, 6)
    query, d_out = query_ref[...], d_out_ref[...]
    lse, delta = lse_ref[...], delta_ref[...]

    def key_block(j: Array, d_query: Array) -> Array:
        keys = pl.ds(j * tiles.keys, tiles.keys)
        key = key_ref[keys, :]
        scores = _scores(query, key, seen, (_ALL, keys, j * tiles.keys), how)
        weights = jnp.exp2(scores - lse[:, None])
        d_scores = weights * (_dot(d_out, value_ref[keys, :], trans_b=True) - delta[:, None])
        d_scores *= _slope(scores, how)
        return d_query + _dot(d_scores.astype(key.dtype), key)

    d_query = jax.lax.fori_loop(first_ref[...], last_ref[...], key_block, jnp.zeros(query.shape, jnp.float32))
    d_query_ref[...] = (d_query * (how.scale * math.log(2))).astype(d_query_ref.dtype)


def _d_key_kernel(*refs: Ref, how: Scores, tiles: Tiles, groups: int) -> None:
    (query_ref, key_ref, value_ref, blocks_ref, count_ref, *others), seen = _split(refs, 7)
    d_out_ref, lse_ref, delta_ref, d_key_ref, d_value_ref = others
    key, value = key_ref[...], value_ref[...]
    offset = pl.program_id(0) * tiles.keys

    def query_head(g: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        def row_block(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d_key, d_value = carry
            rows = pl.ds(blocks_ref[n] * tiles.rows, tiles.rows)
            query, d_out = query_ref[rows, g, :], d_out_ref[rows, g, :]
            scores = _scores(query, key, seen, (rows, _ALL, offset), how)
            weights = jnp.exp2(scores - lse_ref[g, rows][:, None])
            d_value += _dot(weights.astype(d_out.dtype), d_out, trans_a=True)
            d_scores = weights * (_dot(d_out, value, trans_b=True) - delta_ref[g, rows][:, None])
            d_scores *= _slope(scores, how)
            d_key += _dot(d_scores.astype(query.dtype), query, trans_a=True)
            return d_key, d_value

        return jax.lax.fori_loop(0, count_ref[...], row_block, carry)

    zero = jnp.zeros(key.shape, jnp.float32)
    d_key, d_value = jax.lax.fori_loop(0, groups, query_head, (zero, zero))
    d_key_ref[...] = (d_key * (how.scale * math.log(2))).astype(d_key_ref.dtype)
    d_value_ref[...] = d_value.astype(d_value_ref.dtype)


def _scores(query: Array, key: Array, seen: _SeenRefs, which: tuple[Any, Any, Array], how: Scores) -> Array:
    """Rows x keys float32 in base 2, `_HIDDEN` where rows do not see; `which` rows and keys, and their first slot."""
    rows, keys, offset = which
    visible = seen.visible(rows, keys, offset + jnp.arange(key.shape[0], dtype=jnp.int32)[None])
    return jnp.where(visible, capped(_dot(query, key, trans_b=True) * how.scale, how.cap), _HIDDEN)


def _slope(scores: Array, how: Scores) -> Array | float:
    """By how much visible scores move with products."""
    return 1.0 if how.cap is None else jnp.where(scores > _HIDDEN, cap_slope(scores, how.cap), 0.0)


def _options(name: str, tiles: Tiles, interpret: bool) -> dict:
    parameters = triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    return {"name": name, "compiler_params": parameters, "interpret": interpret}


def _fit(tiles: Tiles, rows: int, keys: int) -> Tiles:
    return tiles._replace(rows=min(tiles.rows, rows), keys=min(tiles.keys, keys))


def _pad(x: Array, axis: int) -> Array:
    """`axis` rounded up with zeros to a power of two from `SMALLEST`, and beyond `BLOCK` to a multiple of it.

    Padded rows have an empty range, no range reaches padded keys, and a padded head width adds nothing.
    """
    size = x.shape[axis]
    power = max(SMALLEST, pl.next_power_of_2(size))
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, power - size if axis == 3 or power <= BLOCK else -size % BLOCK)
    return jnp.pad(x, padding)
