"""The matrix product of rows and a weight, with a backward pass that turns around the narrower of its two sides.

The weight's gradient sums over rows, so one of the two factors must be transposed first, or the result afterwards. JAX's
own rule knows one way only, and XLA on the CPU then spends a tenth of a step on transposing the wide side of an MLP.

A factor without a gradient costs none: neither its product nor the memory of what would be multiplied.
"""

import functools
import math

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from a3jax.model.int8 import Int8, multiplied
from a3jax.model.unstacked import OfLayer

PROJECTION = "projection"
"""What rematerialization calls the result."""


def project(x_BxRxi: Array, weight_ixo: Array | Int8 | OfLayer) -> Array:
    """Contract the last axes of `x`, B x R x inputs, with the first axes of the weight, inputs x outputs: B x R x outputs."""
    if isinstance(weight_ixo, Int8):
        return multiplied(x_BxRxi, weight_ixo, over=tuple(range(x_BxRxi.ndim - 2))).astype(x_BxRxi.dtype)
    if isinstance(weight_ixo, OfLayer):
        return weight_ixo.with_it(functools.partial(_product, x_BxRxi))
    return checkpoint_name(_project(x_BxRxi, weight_ixo), PROJECTION)


@jax.custom_vjp
def _project(x_BxRxi: Array, weight_ixo: Array) -> Array:
    return _product(x_BxRxi, weight_ixo)


def _product(x_BxRxi: Array, weight_ixo: Array) -> Array:
    inputs = x_BxRxi.ndim - 2
    last = tuple(range(2, x_BxRxi.ndim))
    return jax.lax.dot_general(x_BxRxi, weight_ixo, ((last, tuple(range(inputs))), ((), ())))


_Saved = tuple[Array | None, Array | None]


def _forward(x: CustomVJPPrimal, weight: CustomVJPPrimal) -> tuple[Array, _Saved]:
    saved = x.value if weight.perturbed else None, weight.value if x.perturbed else None
    return _project(x.value, weight.value), saved


def _backward(saved: _Saved, d_out: Array | SymbolicZero) -> _Saved:
    if isinstance(d_out, SymbolicZero):
        return None, None
    x, weight = saved
    return None if weight is None else _d_x(d_out, weight), None if x is None else _d_weight(x, d_out)


def _d_x(d_out: Array, weight: Array) -> Array:
    outputs = d_out.ndim - 2
    last = tuple(range(2, d_out.ndim)), tuple(range(weight.ndim - outputs, weight.ndim))
    return jax.lax.dot_general(d_out, weight, (last, ((), ())))


def _d_weight(x: Array, d_out: Array) -> Array:
    over_rows = (((0, 1), (0, 1)), ((), ()))
    if math.prod(x.shape[2:]) <= math.prod(d_out.shape[2:]):
        return jax.lax.dot_general(x, d_out, over_rows)
    outputs, axes = d_out.ndim - 2, x.ndim + d_out.ndim - 4
    return jax.lax.dot_general(d_out, x, over_rows).transpose(*range(outputs, axes), *range(outputs))


_project.defvjp(_forward, _backward, symbolic_zeros=True)
