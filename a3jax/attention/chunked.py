"""Blockwise attention in plain JAX: memory linear in length, key blocks that no row of a block can see are skipped.

Rows are taken in blocks. For each, the smallest start and the largest end over its rows bound a loop over key blocks,
so that in generation order about half of all blocks is never computed. The forward pass keeps the running maximum and
sum of the softmax (Milakov & Gimelshein, arXiv 1805.02867); the backward pass rebuilds each block's weights from the
saved log-sum-exp (Dao et al., arXiv 2205.14135). The loop bounds are data, so one compiled program serves any ranges.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from a3jax.attention.blocks import ATTENTION, Attended, Local, Range, near, visible, visible_keys
from a3jax.attention.cap import cap_slope, capped

ROW_BLOCK = 256
KEY_BLOCK = 256


class _Blocks(NamedTuple):
    """Rows cut into n blocks of r, heads folded into rows so that a block of scores is one batched matrix product."""

    query: Array  # n x B x K x (G r) x E, scaled
    start: Array  # n x B x r
    end: Array  # n x B x r
    own: Range | None  # the same of a second range
    window: Range | None  # n x B x r each: between which positions rows see, in layers with local attention


def chunked_attention(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    own: Range | None = None,
    cap: float | None = None,
    local: Local | None = None,
) -> Attended:
    """See `a3jax.attention.attend`. Holds B x H x ROW_BLOCK x KEY_BLOCK float32 scores at a time."""
    return Attended(*_attention(cap, query_BxRxHxE, key_BxLxKxE, value_BxLxKxE, _Seen(start_BxR, end_BxR, own, local)))


class _Seen(NamedTuple):
    """What rows see, B x R each."""

    start: Array
    end: Array
    own: Range | None
    local: Local | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(cap: float | None, query: Array, key: Array, value: Array, seen: _Seen) -> tuple[Array, Array]:
    return _forward(cap, query, key, value, seen)[0]


def _forward(cap: float | None, query: Array, key: Array, value: Array, seen: _Seen) -> tuple[tuple[Array, Array], tuple]:
    key_BxKxLxE, value_BxKxLxE = _pad_keys(key), _pad_keys(value)
    position_BxL = _pad_positions(seen.local)

    def row_block(blocks: _Blocks) -> tuple[Array, Array]:
        count, number = _key_blocks(blocks, position_BxL)

        def key_block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            j = number(i)
            top, total, output = carry
            scores = _scores(blocks, _take(key_BxKxLxE, j), position_BxL, j, cap)
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights = jnp.where(scores > _HIDDEN, jnp.exp(scores - new_top), 0.0)
            shrink = jnp.exp(top - new_top)
            output = output * shrink + _matmul(weights.astype(value.dtype), _take(value_BxKxLxE, j))
            return new_top, total * shrink + weights.sum(-1, keepdims=True), output

        rows = blocks.query.shape[:-1]
        empty = (jnp.full((*rows, 1), _HIDDEN), jnp.zeros((*rows, 1)), jnp.zeros(blocks.query.shape, jnp.float32))
        top, total, output = jax.lax.fori_loop(0, count, key_block, empty)
        sees = total > 0
        # An unseeing row's log-sum-exp is +inf, so that its weights rebuilt in the backward pass are zero.
        lse = jnp.where(sees, top + jnp.log(jnp.where(sees, total, 1.0)), jnp.inf)
        return output / jnp.where(sees, total, 1.0), lse

    output, lse = jax.lax.map(row_block, _row_blocks(query, key.shape[2], seen))
    output_BxRxHxE = checkpoint_name(_join_rows(output, query.shape).astype(query.dtype), ATTENTION)
    lse = checkpoint_name(lse, ATTENTION)
    lse_BxRxH = _join_rows(lse, (*query.shape[:3], 1))[..., 0]
    return (output_BxRxHxE, lse_BxRxH), (query, key, value, seen, output_BxRxHxE, lse)


def _backward(cap: float | None, saved: tuple, d_attended: tuple[Array, Array]) -> tuple:
    (query, key, value, seen, output, lse), (d_output, d_lse) = saved, d_attended
    kv_heads = key.shape[2]
    key_BxKxLxE, value_BxKxLxE = _pad_keys(key), _pad_keys(value)
    position_BxL = _pad_positions(seen.local)
    fold = functools.partial(_fold_rows, kv_heads=kv_heads)
    along = (d_output.astype(jnp.float32) * output.astype(jnp.float32)).sum(-1, keepdims=True)
    delta = fold(along - d_lse[..., None])  # a weight is what the log-sum-exp moves by with its score

    def row_block(carry: tuple[Array, Array], xs: tuple) -> tuple[tuple[Array, Array], Array]:
        blocks, d_out, lse, delta = xs

        count, number = _key_blocks(blocks, position_BxL)

        def key_block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            j = number(i)
            d_query, d_key, d_value = carry
            key_block, value_block = _take(key_BxKxLxE, j), _take(value_BxKxLxE, j)
            scores = _scores(blocks, key_block, position_BxL, j, cap)
            weights = jnp.exp(scores - lse)  # zero where hidden
            slope = jnp.where(scores > _HIDDEN, cap_slope(scores, cap), 0)
            d_scores = (weights * (_matmul(d_out, value_block.mT) - delta) * slope).astype(key.dtype)
            weights = weights.astype(value.dtype)
            d_query += _matmul(d_scores, key_block)
            d_key = _add(d_key, _matmul(d_scores.mT, blocks.query), j)
            d_value = _add(d_value, _matmul(weights.mT, d_out), j)
            return d_query, d_key, d_value

        zero = jnp.zeros(blocks.query.shape, jnp.float32)
        d_query, d_key, d_value = jax.lax.fori_loop(0, count, key_block, (zero, *carry))
        return (d_key, d_value), d_query

    zeros = jnp.zeros(key_BxKxLxE.shape, jnp.float32)
    blocks = _row_blocks(query, kv_heads, seen)
    (d_key, d_value), d_query = jax.lax.scan(row_block, (zeros, zeros), (blocks, fold(d_output), lse, delta))
    d_query = _join_rows(d_query, query.shape) * query.shape[-1] ** -0.5
    length = key.shape[1]
    d_key, d_value = (d.swapaxes(1, 2)[:, :length] for d in (d_key, d_value))
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_attention.defvjp(_forward, _backward)

_HIDDEN = -1e30


def _scores(blocks: _Blocks, key_block: Array, position_BxL: Array | None, j: Array, cap: float | None) -> Array:
    """Scores of one block of rows against key block j: B x K x (G r) x l float32, hidden ones at `_HIDDEN`."""
    index_l = j * KEY_BLOCK + jnp.arange(KEY_BLOCK)
    visible_Bxrxl = visible(index_l, blocks.start, blocks.end, blocks.own)
    if blocks.window is not None and position_BxL is not None:
        position_Bx1xl = jax.lax.dynamic_slice_in_dim(position_BxL, j * KEY_BLOCK, KEY_BLOCK, axis=1)[:, None]
        visible_Bxrxl &= near(position_Bx1xl, *blocks.window)
    groups = blocks.query.shape[2] // blocks.start.shape[1]
    mask = jnp.tile(visible_Bxrxl, (1, groups, 1))[:, None]
    return jnp.where(mask, capped(_matmul(blocks.query, key_block.mT), cap), _HIDDEN)


def _key_blocks(blocks: _Blocks, position_BxL: Array | None) -> tuple[Array, Callable[[Array], Array]]:
    """How many key blocks some row of the block sees, in some example, and which they are, by number from 0."""

    local = None if blocks.window is None or position_BxL is None else Local(*blocks.window, position_BxL)

    def bounds(start_Bxr: Array, end_Bxr: Array) -> Range:
        first, last = visible_keys(start_Bxr, end_Bxr, start_Bxr.shape[1], KEY_BLOCK, local)
        return first.min(), last.max()

    first, last = bounds(blocks.start, blocks.end)
    count = jnp.maximum(last - first, 0)
    if blocks.own is None:
        return count, lambda i: first + i
    own_first, own_last = bounds(*blocks.own)
    own_first = jnp.maximum(own_first, last)  # no block twice
    return count + jnp.maximum(own_last - own_first, 0), lambda i: jnp.where(i < count, first + i, own_first + i - count)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _take(x_BxKxLxE: Array, j: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_BxKxLxE, j * KEY_BLOCK, KEY_BLOCK, axis=2)


def _add(x_BxKxLxE: Array, block: Array, j: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x_BxKxLxE, _take(x_BxKxLxE, j) + block, j * KEY_BLOCK, axis=2)


def _pad_keys(x_BxLxKxE: Array) -> Array:
    """B x K x L x E with L rounded up to whole blocks; no range reaches the padding."""
    pad = -x_BxLxKxE.shape[1] % KEY_BLOCK
    return jnp.pad(x_BxLxKxE, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)


def _pad_positions(local: Local | None) -> Array | None:
    return None if local is None else jnp.pad(local.position, ((0, 0), (0, -local.position.shape[1] % KEY_BLOCK)), "edge")


def _row_blocks(query: Array, kv_heads: int, seen: _Seen) -> _Blocks:
    def cut(x_BxR: Array) -> Array:
        rows = x_BxR.shape[1]
        size = min(ROW_BLOCK, rows)
        padded = jnp.pad(x_BxR, ((0, 0), (0, -rows % size)))
        return padded.reshape(x_BxR.shape[0], -1, size).swapaxes(0, 1)

    scale = query.shape[-1] ** -0.5
    folded = _fold_rows((query * scale).astype(query.dtype), kv_heads)
    rows = jax.tree.map(cut, (seen.start, seen.end, seen.own, None if seen.local is None else seen.local[:2]))
    return _Blocks(folded, *rows)


def _fold_rows(x_BxRxHxE: Array, kv_heads: int) -> Array:
    """B x R x H x E -> n x B x K x (G r) x E."""
    B, R, H, E = x_BxRxHxE.shape
    size = min(ROW_BLOCK, R)
    x = jnp.pad(x_BxRxHxE, ((0, 0), (0, -R % size), (0, 0), (0, 0)))
    x = x.reshape(B, -1, size, kv_heads, H // kv_heads, E).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(x.shape[0], B, kv_heads, -1, E)


def _join_rows(x: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_fold_rows` for a result of `shape`, padding dropped."""
    B, R, H, E = shape
    n, _, K = x.shape[:3]
    size = min(ROW_BLOCK, R)
    x = x.reshape(n, B, K, H // K, size, E).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(B, n * size, H, E)[:, :R]
