"""Weights as whole numbers of eight bits, with a scale for every output: a quarter of float32's memory, for serving.

A weight w of an output becomes round(w / s), where s is the largest |w| of that output over 127. Rows are multiplied with the
whole numbers as they are, and what comes out with the scales; nothing but weights is rounded by more than a 32,639th of its
row's largest number (`docs/performance.md` has what that costs). Nothing is differentiated through it.

A few rows of float32 are multiplied as whole numbers too. A row becomes 256 h + l, with h and l of eight bits, so that its
product is two of whole numbers, added up without an error. Decoding does little else than read weights: so they are read as
they lie in memory, where to compute in float32 they would first be written out four times as large.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.model.parameters import declared

KINDS = ("matrix", "adapter", "embedding", "head")
"""What is rounded: most of what a pass reads. Experts, routers, norms and biases stay as they are."""

_FEW_ROWS = 8
"""More are not sooner multiplied as whole numbers, twice as many, than in float32 (`docs/performance.md`)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """What stands in the place of a matrix, or of the embedding or head."""

    values: Array
    """int8, inputs x outputs; of all layers, N first. Of an embedding or head, V x D."""
    scales: Array
    """Float32, one for each output; of all layers, N first. Of an embedding or head, V."""

    def __getitem__(self, key: Any) -> "Int8":
        """A part of the layers, or itself."""
        return Int8(self.values[key], self.scales[key])

    def astype(self, dtype: Any) -> "Int8":
        """Itself: rows of any type are multiplied with it."""
        return self

    def rows(self, index: Array | slice) -> Array:
        """Some rows of an embedding or head, ... x D float32."""
        return self.values[index] * self.scales[index, None]


def rounded(params: nnx.State) -> nnx.State:
    """The parameters with those of `KINDS` in int8, all else as it is; the arrays given of those are used up."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        what, weight = declared(leaf), leaf[...]
        if what.kind in KINDS:
            leaf = leaf.replace(_round(weight, what.inputs or 1))
            weight.delete()  # so that memory holds one more matrix at most
        flat.append((path, leaf))
    return nnx.from_flat_state(flat)


@functools.partial(jax.jit, static_argnames="inputs")
def _round(weight: Array, inputs: int) -> Int8:
    over = tuple(range(1, 1 + inputs))
    scales = jnp.abs(weight.astype(jnp.float32)).max(over, keepdims=True) / 127
    values = jnp.rint(weight / jnp.where(scales == 0, 1, scales)).astype(jnp.int8)
    return Int8(values, scales.squeeze(over))


def multiplied(x: Array, weight: Int8, over: tuple[int, ...]) -> Array:
    """Contract the last axes of `x`, ... x inputs, with the axes `over` of the weight: ... x outputs float32."""
    last = tuple(range(x.ndim - len(over), x.ndim))
    if x.dtype == jnp.float32 and math.prod(x.shape[: last[0]]) <= _FEW_ROWS:
        return _as_whole_numbers(x, weight.values, last, over) * weight.scales
    sums = jax.lax.dot_general(x, weight.values.astype(x.dtype), ((last, over), ((), ())), preferred_element_type=jnp.float32)
    return sums * weight.scales


def _as_whole_numbers(x: Array, values: Array, last: tuple[int, ...], over: tuple[int, ...]) -> Array:
    scale = jnp.abs(x).max(last, keepdims=True) / (127 * 256 + 127)
    whole = jnp.rint(x / jnp.where(scale == 0, 1, scale))
    high = jnp.floor((whole + 128) / 256)
    both = jnp.stack([high, whole - 256 * high]).astype(jnp.int8)  # twice as many rows
    contracted = (tuple(axis + 1 for axis in last), over)
    sums = jax.lax.dot_general(both, values, (contracted, ((), ())), preferred_element_type=jnp.int32)
    high, low = sums.astype(jnp.float32)
    return (256 * high + low) * scale.reshape(*scale.shape[: last[0]], *[1] * (high.ndim - last[0]))
