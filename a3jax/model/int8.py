"""Matrices as whole numbers of eight bits, with a scale for every output: a quarter of float32's memory, for serving.

A weight w of an output becomes round(w / s), where s is the largest |w| of that output over 127. Rows are multiplied with the
whole numbers as they are, and what comes out with the scales; nothing but weights is rounded (`docs/performance.md` has what
that costs). Nothing is differentiated through it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.model.parameters import declared


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """What stands in the place of a matrix."""

    values: Array
    """int8, inputs x outputs; of all layers, N first."""
    scales: Array
    """One for each output; of all layers, N first."""

    def __getitem__(self, key: Any) -> "Int8":
        """A part of the layers, or itself."""
        return Int8(self.values[key], self.scales[key])

    def astype(self, dtype: Any) -> "Int8":
        """The same to compute in another type."""
        return Int8(self.values, self.scales.astype(dtype))


def rounded(params: nnx.State) -> nnx.State:
    """The parameters with the matrices of all layers in int8, all else as it is; the matrices given are used up."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        what, weight = declared(leaf), leaf[...]
        if what.kind == "matrix":
            leaf = leaf.replace(_round(weight, what.inputs))
            weight.delete()  # so that memory holds one more matrix at most
        flat.append((path, leaf))
    return nnx.from_flat_state(flat)


@functools.partial(jax.jit, static_argnames="inputs")
def _round(weight: Array, inputs: int) -> Int8:
    over = tuple(range(1, 1 + inputs))
    scales = jnp.abs(weight.astype(jnp.float32)).max(over, keepdims=True) / 127
    values = jnp.rint(weight / jnp.where(scales == 0, 1, scales)).astype(jnp.int8)
    return Int8(values, scales.squeeze(over).astype(weight.dtype))
