"""The matrix product of rows and a weight, with a backward pass that turns around the narrower of its two sides.

The weight's gradient sums over rows, so one of the two factors must be transposed first, or the result afterwards. JAX's
own rule knows one way only, and XLA on the CPU then spends a tenth of a step on transposing the wide side of an MLP.
"""

import math

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

PROJECTION = "projection"
"""What rematerialization calls the result."""


def project(x_BxRxi: Array, weight_ixo: Array) -> Array:
    """Contract the last axes of `x`, B x R x inputs, with the first axes of the weight, inputs x outputs: B x R x outputs."""
    return checkpoint_name(_project(x_BxRxi, weight_ixo), PROJECTION)


@jax.custom_vjp
def _project(x_BxRxi: Array, weight_ixo: Array) -> Array:
    inputs = x_BxRxi.ndim - 2
    last = tuple(range(2, x_BxRxi.ndim))
    return jax.lax.dot_general(x_BxRxi, weight_ixo, ((last, tuple(range(inputs))), ((), ())))


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _project(x, weight), (x, weight)


def _backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, weight = saved
    inputs, outputs = x.ndim - 2, d_out.ndim - 2
    last = tuple(range(2, d_out.ndim)), tuple(range(inputs, weight.ndim))
    d_x = jax.lax.dot_general(d_out, weight, (last, ((), ())))
    over_rows = (((0, 1), (0, 1)), ((), ()))
    if math.prod(x.shape[2:]) <= math.prod(d_out.shape[2:]):
        return d_x, jax.lax.dot_general(x, d_out, over_rows)
    d_weight_oxi = jax.lax.dot_general(d_out, x, over_rows)
    return d_x, d_weight_oxi.transpose(*range(outputs, weight.ndim), *range(outputs))


_project.defvjp(_forward, _backward)
