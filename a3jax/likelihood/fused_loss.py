"""Negative log-likelihood from hidden states, without ever holding the B x L x V logits.

Logits exist for `chunk` rows at a time. The loss is one scalar whose gradient with respect to each chunk of logits is
known as soon as they are (softmax minus one-hot, times the row's weight), so the backward pass is computed together
with the forward one and no logits are computed twice. Rows without weight (given tokens, padding) are brought together
at the end, where chunks of nothing else are skipped. Gradients are exact. Memory: chunk x V float32 logits and as much
again for their gradient, plus V x D float32 for the head's, unless it is not trained.

Over a mesh every device goes through its own rows and no hidden state leaves it: the head is gathered once before the
first chunk, and its gradient is summed over the devices once after the last. Where the vocabulary is split over `tensor`,
a device holds the logits of its part, and the devices of a row add up what the softmax wants of all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from a3jax.attention.cap import cap_slope
from a3jax.devices.mesh import BATCH, WIDTH, sum_scattered
from a3jax.model.head import head_logits
from a3jax.ordering import gather

_ROWS = P(BATCH, "context")
_HEAD = P("tensor")


class _Axes(NamedTuple):
    """The axes of the mesh in use that lead to other devices."""

    rows: tuple[str, ...]
    """To those with other rows."""
    vocabulary: tuple[str, ...]
    """To those with other tokens of the vocabulary."""


def _axes() -> _Axes:
    split = {axis for axis, size in jax.sharding.get_abstract_mesh().shape.items() if size > 1}
    return _Axes(tuple(axis for axis in (*BATCH, "context") if axis in split), ("tensor",) if "tensor" in split else ())


def token_nll(hidden_BxLxD: Array, head_VxD: Array, target_BxL: Array, chunk: int, cap: float | None = None) -> Array:
    """-log p(target) in nats for every row, B x L float32. Not meant to be differentiated. `chunk` is of one device.

    Logits are bent to stay within `cap` (`a3jax.attention.cap`).
    """
    device = functools.partial(_token_nll, chunk=chunk, cap=cap, axes=_axes())
    on_devices = _on_every_device(device, (_ROWS, _HEAD, _ROWS), _ROWS)
    return on_devices(hidden_BxLxD, head_VxD.astype(hidden_BxLxD.dtype), target_BxL)


class SoftTargets(NamedTuple):
    """What a share of the loss is measured against in place of the targets: a teacher's distribution of each."""

    hidden_BxLxD: Array
    head_VxD: Array
    share: float


def nll_sum(
    hidden_BxLxD: Array,
    head_VxD: Array,
    target_BxL: Array,
    weight_BxL: Array,
    chunk: int,
    soft: SoftTargets | None = None,
    cap: float | None = None,
) -> Array:
    """Sum over rows of weight x -log p(target), a float32 scalar, differentiable in `hidden` and `head`.

    With soft targets, -log p(target) is mixed with the cross-entropy to the teacher's distribution, sum of -p_t log p.
    `chunk` counts rows of one device. Logits, the teacher's too, are bent to stay within `cap`.
    """
    taught = (None, None, 0.0) if soft is None else soft
    return _nll_sum(hidden_BxLxD, head_VxD, target_BxL, weight_BxL, *taught[:2], _How(chunk, taught[2], cap))


def _on_every_device(function: Callable, parts: Any, result: Any) -> Callable:
    """`function` of what a device holds; of everything where no mesh is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=result, check_vma=False)


def _token_nll(hidden_BxLxD: Array, head_VxD: Array, target_BxL: Array, chunk: int, cap: float | None, axes: _Axes) -> Array:
    def rows(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        hidden_BxcxD, target_Bxc = xs
        logits = head_logits(hidden_BxcxD, head_VxD, cap)
        return None, _softmax(logits, axes).log_normalizer - _pick(logits, target_Bxc, axes)

    _, nll = jax.lax.scan(rows, None, (_cut(hidden_BxLxD, chunk), _cut(target_BxL, chunk)))
    return _join(nll, target_BxL.shape[1])


class _Inputs(NamedTuple):
    """What the loss is made of."""

    hidden: Array
    head: Array
    target: Array
    weight: Array
    teacher: Array | None
    teacher_head: Array | None


class _How(NamedTuple):
    """What is fixed when the loss is compiled."""

    chunk: int
    share: float
    """Of the teacher's distribution."""
    cap: float | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _nll_sum(
    hidden: Array,
    head: Array,
    target: Array,
    weight: Array,
    teacher: Array | None,
    teacher_head: Array | None,
    how: _How,
) -> Array:
    if teacher is None:
        return (token_nll(hidden, head, target, how.chunk, how.cap) * weight).sum()
    return _sums(_Inputs(hidden, head, target, weight, teacher, teacher_head), how, trained_head=False)[0]


def _forward(*arguments: Any) -> tuple[Array, tuple]:
    *arrays, how = arguments
    trained_head = arrays[1].perturbed
    values: tuple[Any, ...] = tuple(None if array is None else array.value for array in arrays)
    total, *gradients = _sums(_Inputs(*values), how, trained_head)
    return total, tuple(gradients)


def _sums(inputs: _Inputs, how: _How, trained_head: bool) -> tuple[Array, Array, Array | None]:
    """The loss, and its gradients with respect to `hidden` and, if it is trained, `head`."""
    device = functools.partial(_own_sums, how=how, trained_head=trained_head, axes=_axes())
    parts: tuple[Any, ...] = (_ROWS, _HEAD, _ROWS, _ROWS, _ROWS, _HEAD)
    on_devices = _on_every_device(device, (_Inputs(*parts),), (P(), _ROWS, P(WIDTH, "tensor")))
    rounded = {
        name: matrix.astype(inputs.hidden.dtype)
        for name, matrix in (("head", inputs.head), ("teacher_head", inputs.teacher_head))
        if matrix is not None
    }
    total, d_hidden, d_head_DxV = on_devices(inputs._replace(**rounded))
    return total, d_hidden, d_head_DxV.T.astype(inputs.head.dtype) if trained_head else None


def _own_sums(own: _Inputs, how: _How, trained_head: bool, axes: _Axes) -> tuple[Array, Array, Array | None]:
    """What one device does for `_sums`: its own rows, and then the sum over the other devices.

    The head's gradient is D x V, and of its width the device keeps the part that it has of the head.
    """
    hidden, head, target, weight, teacher, teacher_head = own
    last_BxL = jnp.argsort(weight == 0, axis=1, stable=True)
    first_BxL = jnp.argsort(last_BxL, axis=1)

    def rows(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        def skipped(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            return carry, jnp.zeros_like(xs[0])

        live, *xs = xs
        return jax.lax.cond(live, counted, skipped, carry, tuple(xs))

    def counted(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        total, d_head_DxV = carry
        hidden_BxcxD, target_Bxc, weight_Bxc, *teacher_BxcxD = xs
        logits = head_logits(hidden_BxcxD, head, how.cap)
        softmax = _softmax(logits, axes)
        wanted = _tokens(logits, axes) == target_Bxc[..., None]
        if teacher_head is None:
            found = _pick(logits, target_Bxc, axes)
        else:
            taught = _softmax(head_logits(teacher_BxcxD[0], teacher_head, how.cap), axes)
            wanted = (1 - how.share) * wanted + how.share * taught.exp / taught.normalizer
            found = jax.lax.psum((wanted * logits).sum(-1), axes.vocabulary)
        total += ((softmax.log_normalizer - found) * weight_Bxc).sum()
        d_logits = (softmax.exp / softmax.normalizer - wanted) * weight_Bxc[..., None]
        d_logits = (d_logits * cap_slope(logits, how.cap)).astype(hidden.dtype)
        d_hidden = jnp.einsum("bcv,vd->bcd", d_logits, head, preferred_element_type=jnp.float32)
        d_hidden = jax.lax.psum(d_hidden, axes.vocabulary).astype(hidden.dtype)
        if trained_head:
            d_head_DxV += jnp.einsum("bcd,bcv->dv", hidden_BxcxD, d_logits, preferred_element_type=jnp.float32)
        return (total, d_head_DxV), d_hidden

    taught_rows = () if teacher is None else (teacher,)
    xs = tuple(_cut(gather(x, last_BxL), how.chunk) for x in (hidden, target, weight, *taught_rows))
    # All devices skip together, so that none waits in a chunk for another that has left it out.
    live_n = jax.lax.psum((xs[2] != 0).any((1, 2)).astype(jnp.int32), axes.rows) > 0
    zeros = jnp.zeros(()), jnp.zeros(head.shape[::-1] if trained_head else ())
    (total, d_head_DxV), d_hidden = jax.lax.scan(rows, zeros, (live_n, *xs))
    d_hidden = gather(_join(d_hidden, hidden.shape[1]), first_BxL)
    if not trained_head:
        d_head_DxV = None
    else:
        for axis in axes.rows:
            d_head_DxV = sum_scattered(d_head_DxV, axis) if axis in WIDTH else d_head_DxV
        d_head_DxV = jax.lax.psum(d_head_DxV, tuple(axis for axis in axes.rows if axis not in WIDTH))
    return jax.lax.psum(total, axes.rows), d_hidden, d_head_DxV


def _backward(how: _How, gradients: tuple[Array, Array | None], d_total: Array) -> tuple:
    d_hidden, d_head = gradients
    d_hidden, d_head = (None if d is None else (d * d_total).astype(d.dtype) for d in (d_hidden, d_head))
    return d_hidden, d_head, None, None, None, None


_nll_sum.defvjp(_forward, _backward, symbolic_zeros=True)


class _Softmax(NamedTuple):
    """exp(logits - top) of this device's tokens, and over all tokens their sum, ... x 1, and its logarithm with top, ..."""

    exp: Array
    normalizer: Array
    log_normalizer: Array


def _softmax(logits_BxcxV: Array, axes: _Axes) -> _Softmax:
    top = jax.lax.pmax(logits_BxcxV.max(-1, keepdims=True), axes.vocabulary)
    exp = jnp.exp(logits_BxcxV - top)
    normalizer = jax.lax.psum(exp.sum(-1, keepdims=True), axes.vocabulary)
    return _Softmax(exp, normalizer, (top + jnp.log(normalizer))[..., 0])


def _tokens(logits_BxcxV: Array, axes: _Axes) -> Array:
    """The tokens whose logits this device holds."""
    own = logits_BxcxV.shape[-1]
    return jnp.arange(own) + (jax.lax.axis_index(axes.vocabulary) * own if axes.vocabulary else 0)


def _pick(logits_BxcxV: Array, target_Bxc: Array, axes: _Axes) -> Array:
    """The logit of every target, which one of the devices holds; NaN for a number that is no token."""
    own = logits_BxcxV.shape[-1]
    index = target_Bxc - _tokens(logits_BxcxV, axes)[0]
    found = jnp.take_along_axis(logits_BxcxV, index[..., None], axis=-1, mode="clip")[..., 0]
    found = jax.lax.psum(jnp.where((index >= 0) & (index < own), found, 0), axes.vocabulary)
    return jnp.where((target_Bxc >= 0) & (target_Bxc < own * jax.lax.psum(1, axes.vocabulary)), found, jnp.nan)


def _cut(x_BxLx: Array, chunk: int) -> Array:
    """n x B x c x ...: L in pieces of c = chunk / B rows; zero padding."""
    batch, length = x_BxLx.shape[:2]
    size = min(length, max(1, chunk // batch))
    pad = [(0, 0), (0, -length % size)] + [(0, 0)] * (x_BxLx.ndim - 2)
    x = jnp.pad(x_BxLx, pad).reshape(batch, -1, size, *x_BxLx.shape[2:])
    return x.swapaxes(0, 1)


def _join(x: Array, length: int) -> Array:
    """The inverse of `_cut`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
