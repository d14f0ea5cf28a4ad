"""The one attention interface, and the choice of implementation."""

from typing import Literal

import jax
from jax import Array
from jax.sharding import PartitionSpec as P

from a3jax.attention.chunked import chunked_attention
from a3jax.attention.dense import dense_attention

Implementation = Literal["auto", "dense", "chunked"]

DENSE_KEYS = 128
"""`auto` uses the dense path up to this many keys: one block of scores is all there is."""


def attend(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    implementation: Implementation = "auto",
) -> Array:
    """Softmax attention of each row over keys [start, end), scaled by E**-0.5; a row with an empty range gives zero.

    H is a multiple of K: query head h reads key-value head h // (H / K). Returns B x R x H x E in the query's dtype;
    softmax statistics are float32. Under a mesh, batch is split over (data, fsdp) and heads over tensor.
    """
    if implementation == "auto":
        implementation = "dense" if key_BxLxKxE.shape[1] <= DENSE_KEYS else "chunked"
    function = dense_attention if implementation == "dense" else chunked_attention
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(query_BxRxHxE, key_BxLxKxE, value_BxLxKxE, start_BxR, end_BxR)
    batch = ("data", "fsdp")
    heads, rows = P(batch, None, "tensor", None), P(batch, None)
    split = jax.shard_map(function, mesh=mesh, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)
    return split(query_BxRxHxE, key_BxLxKxE, value_BxLxKxE, start_BxR, end_BxR)
