"""JAX's Splash attention on TPU, with the ranges as data.

Splash computes the blocks that a table lists, and hides keys in them by a function of the key and one integer per row. It
means both to be constants of the compiled program. Ends of ranges are not: they depend on what is given and on where
documents begin, as do the blocks worth computing. But the kernel reads all of it from operands, so each example brings
its own: the row's end as the integer, and a table of just the blocks that its ranges touch. Where documents begin are
Splash's segment ids. Content and query rows go through one call, and one program serves every stage of a curriculum.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from a3jax.attention.blocks import ATTENTION, SPLASH_BLOCK, Attended, visible_keys

LANES = 128
"""Blocks are multiples of it; inputs shorter than a block take the next one."""


def splash_attention(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    block: int = SPLASH_BLOCK,
    cap: float | None = None,
    interpret: bool = False,
) -> Attended:
    """See `a3jax.attention.attend`. Ranges of one example that start at different keys must not overlap.

    `block` rows and keys are a block, of all three kernels.
    """
    rows, width = query_BxRxHxE.shape[1], query_BxRxHxE.shape[3]
    r, k = _block(rows, block), _block(key_BxLxKxE.shape[1], block)
    sizes = splash.BlockSizes(r, k, block_q_dkv=r, block_kv_dkv=k, block_q_dq=r, block_kv_dq=k)

    def example(inputs: tuple[Array, ...]) -> Array:
        query_HxRxE, key_KxLxE, value_KxLxE, start_R, end_R = inputs
        slots = key_KxLxE.shape[1]
        lit_IxJ = lit_blocks(start_R, end_R, r, k, slots)
        by_row, by_key = (table._replace(q_sequence=end_R) for table in tables(lit_IxJ))  # type: ignore[arg-type]
        kernel = splash.SplashAttentionKernel(
            by_row,
            by_row,
            by_key,
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=cap,
            residual_checkpoint_name=ATTENTION,
            mask_function=_before_end,
            interpret=interpret,
        )
        segments = splash.SegmentIds(start_R, _key_starts(start_R, end_R, slots))
        return cast(Array, kernel(query_HxRxE, key_KxLxE, value_KxLxE, segments))

    scaled = (query_BxRxHxE * width**-0.5).astype(query_BxRxHxE.dtype)
    query, key, value = (_pad(x, size).swapaxes(1, 2) for x, size in ((scaled, r), (key_BxLxKxE, k), (value_BxLxKxE, k)))
    # One example after the other, which is how a TPU runs them anyhow: the grid's tables cannot differ within one call.
    out_BxHxRxE = jax.lax.map(example, (query, key, value, _pad(start_BxR, r), _pad(end_BxR, r)))
    out_BxRxHxE = out_BxHxRxE.swapaxes(1, 2)[:, :rows]
    # Splash gives a row that sees nothing the mean of keys that it may not see: a leak, and a gradient into them.
    return Attended(jnp.where((end_BxR > start_BxR)[..., None, None], out_BxRxHxE, 0), None)


def lit_blocks(start_R: Array, end_R: Array, rows: int, keys: int, slots: int) -> Array:
    """Which blocks the kernels compute, R / rows x slots / keys bool: from the first to the last that a row sees.

    A block of rows that sees nothing has the first one lit nevertheless: without any, Splash divides by zero there.
    """
    first, last = (x.reshape(-1, 1) for x in visible_keys(start_R[None], end_R[None], rows, keys))
    last = jnp.maximum(last, 1)
    index_J = jnp.arange(slots // keys)
    return (jnp.minimum(first, last - 1) <= index_J) & (index_J < last)


def tables(lit_IxJ: Array) -> tuple[MaskInfo, MaskInfo]:
    """What tells Splash which blocks to compute: for the kernels that go along rows, and for the one that goes along keys.

    All lit blocks are called partial, as a mask that is computed is applied to every block anyhow. `data_next` names the
    lit block that comes next, the present one included, so that nothing is loaded for the dark ones between.
    """
    kind = jnp.int8 if max(lit_IxJ.shape) <= jnp.iinfo(jnp.int8).max else jnp.int16  # scalar memory is scarce

    def table(upcoming_IxJ: Array) -> MaskInfo:
        return MaskInfo(upcoming_IxJ.astype(kind)[None], None, lit_IxJ.astype(jnp.int8)[None], None, None)

    return table(_upcoming(lit_IxJ)), table(_upcoming(lit_IxJ.T).T)


def _upcoming(lit_OxI: Array) -> Array:
    """The inner index of the next lit block in row-major order; after the last, the first's, where the next head begins."""
    size = lit_OxI.size
    turn = jax.lax.cummin(jnp.where(lit_OxI.ravel(), jnp.arange(size), size), reverse=True)
    turn = jnp.where(turn == size, turn[0], turn)
    return (turn % lit_OxI.shape[1]).reshape(lit_OxI.shape)


def _before_end(end: Array, key: Array) -> Array:
    return key < end


def _key_starts(start_R: Array, end_R: Array, slots: int) -> Array:
    """For each key the start of the ranges that reach it: the last one that is not after it."""
    begins = (start_R[:, None] <= jnp.arange(slots)) & (end_R > start_R)[:, None]
    return jnp.where(begins, start_R[:, None], 0).max(0)


def _block(length: int, block: int) -> int:
    return min(block, -(-length // LANES) * LANES)


def _pad(x: Array, block: int) -> Array:
    """Axis 1 rounded up to whole blocks; padded rows have an empty range, and no range reaches padded keys."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
