"""Negative log-likelihood from hidden states, without ever holding the B x L x V logits.

Logits exist for `chunk` rows at a time. The loss is one scalar whose gradient with respect to each chunk of logits is
known as soon as they are (softmax minus one-hot, times the row's weight), so the backward pass is computed together
with the forward one and no logits are computed twice. Rows without weight (given tokens, padding) are brought together
at the end, where chunks of nothing else are skipped. Gradients are exact. Memory: chunk x V float32 logits and as much
again for their gradient, plus V x D float32 for the head's, unless it is not trained. Over a mesh with `context` every
device cuts its own share of a window's rows into chunks, as if it were a window of its own; no hidden state leaves its
device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.context import shares, whole


def token_nll(hidden_BxLxD: Array, head_VxD: Array, target_BxL: Array, chunk: int) -> Array:
    """-log p(target) in nats for every row, B x L float32. Not meant to be differentiated."""
    return whole(_token_nll(shares(hidden_BxLxD), head_VxD, shares(target_BxL), chunk))


class Teacher(NamedTuple):
    """What a share of the loss is measured against in place of the targets: another model's distribution of each."""

    hidden_BxLxD: Array
    head_VxD: Array
    share: float


def nll_sum(
    hidden_BxLxD: Array, head_VxD: Array, target_BxL: Array, weight_BxL: Array, chunk: int, teacher: Teacher | None = None
) -> Array:
    """Sum over rows of weight x -log p(target), a float32 scalar, differentiable in `hidden` and `head`.

    With a teacher, -log p(target) is mixed with the cross-entropy to the teacher's distribution, sum of -p_t log p.
    """
    rows = tuple(map(shares, (hidden_BxLxD, target_BxL, weight_BxL)))
    if teacher is None:
        return _nll_sum(rows[0], head_VxD, *rows[1:], None, None, chunk, 0.0)
    return _nll_sum(rows[0], head_VxD, *rows[1:], shares(teacher.hidden_BxLxD), teacher.head_VxD, chunk, teacher.share)


def _token_nll(hidden_BxLxD: Array, head_VxD: Array, target_BxL: Array, chunk: int) -> Array:
    def rows(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        hidden_BxcxD, target_Bxc = xs
        logits = _logits(hidden_BxcxD, head_VxD)
        return None, jax.nn.logsumexp(logits, axis=-1) - _pick(logits, target_Bxc)

    _, nll = jax.lax.scan(rows, None, (_cut(hidden_BxLxD, chunk), _cut(target_BxL, chunk)))
    return _join(nll, target_BxL.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _nll_sum(
    hidden: Array,
    head: Array,
    target: Array,
    weight: Array,
    teacher: Array | None,
    teacher_head: Array | None,
    chunk: int,
    share: float,
) -> Array:
    if teacher is None:
        return (_token_nll(hidden, head, target, chunk) * weight).sum()
    return _sums(hidden, head, target, weight, teacher, teacher_head, chunk, share, trained_head=False)[0]


def _forward(*arguments: Any) -> tuple[Array, tuple]:
    *arrays, chunk, share = arguments
    trained_head = arrays[1].perturbed
    values: tuple[Any, ...] = tuple(None if array is None else array.value for array in arrays)
    hidden, head, target, weight, teacher, teacher_head = values
    total, *gradients = _sums(hidden, head, target, weight, teacher, teacher_head, chunk, share, trained_head)
    return total, tuple(gradients)


def _sums(
    hidden: Array,
    head: Array,
    target: Array,
    weight: Array,
    teacher: Array | None,
    teacher_head: Array | None,
    chunk: int,
    share: float,
    trained_head: bool,
) -> tuple[Array, Array, Array | None]:
    """The loss, and its gradients with respect to `hidden` and, if it is trained, `head`."""
    last_BxL = jnp.argsort(weight == 0, axis=1, stable=True)
    first_BxL = jnp.argsort(last_BxL, axis=1)

    def rows(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        def skipped(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            return carry, jnp.zeros_like(xs[0])

        return jax.lax.cond((xs[2] != 0).any(), counted, skipped, carry, xs)

    def counted(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        total, d_head_DxV = carry
        hidden_BxcxD, target_Bxc, weight_Bxc, *teacher_BxcxD = xs
        logits = _logits(hidden_BxcxD, head)
        top = logits.max(-1, keepdims=True)
        exp = jnp.exp(logits - top)
        normalizer = exp.sum(-1, keepdims=True)
        lse = (top + jnp.log(normalizer))[..., 0]
        wanted = jnp.arange(logits.shape[-1]) == target_Bxc[..., None]
        if teacher_head is None:
            found = _pick(logits, target_Bxc)
        else:
            wanted = (1 - share) * wanted + share * jax.nn.softmax(_logits(teacher_BxcxD[0], teacher_head), axis=-1)
            found = (wanted * logits).sum(-1)
        total += ((lse - found) * weight_Bxc).sum()
        d_logits = (exp / normalizer - wanted) * weight_Bxc[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = d_logits @ head.astype(hidden.dtype)
        if trained_head:
            d_head_DxV += jnp.einsum("bcd,bcv->dv", hidden_BxcxD, d_logits, preferred_element_type=jnp.float32)
        return (total, d_head_DxV), d_hidden

    taught = () if teacher is None else (teacher,)
    xs = tuple(_cut(_gather(x, last_BxL), chunk) for x in (hidden, target, weight, *taught))
    zeros = jnp.zeros(()), jnp.zeros(head.shape[::-1] if trained_head else ())
    (total, d_head_DxV), d_hidden = jax.lax.scan(rows, zeros, xs)
    d_hidden = _gather(_join(d_hidden, hidden.shape[1]), first_BxL)
    return total, d_hidden, d_head_DxV.T.astype(head.dtype) if trained_head else None


def _backward(chunk: int, share: float, gradients: tuple[Array, Array | None], d_total: Array) -> tuple:
    d_hidden, d_head = gradients
    d_hidden, d_head = (None if d is None else (d * d_total).astype(d.dtype) for d in (d_hidden, d_head))
    return d_hidden, d_head, None, None, None, None


_nll_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(hidden_BxcxD: Array, head_VxD: Array) -> Array:
    """B x c x V float32."""
    head_VxD = head_VxD.astype(hidden_BxcxD.dtype)
    return jnp.einsum("bcd,vd->bcv", hidden_BxcxD, head_VxD, preferred_element_type=jnp.float32)


def _gather(x_BxLx: Array, index_BxL: Array) -> Array:
    return jnp.take_along_axis(x_BxLx, index_BxL.reshape(*index_BxL.shape, *[1] * (x_BxLx.ndim - 2)), axis=1)


def _pick(logits_BxcxV: Array, target_Bxc: Array) -> Array:
    return jnp.take_along_axis(logits_BxcxV, target_Bxc[..., None], axis=-1)[..., 0]


def _cut(x_BxLx: Array, chunk: int) -> Array:
    """n x B x c x ...: L in pieces of c = chunk / B rows, so that every device keeps its own batch; zero padding."""
    batch, length = x_BxLx.shape[:2]
    size = min(length, max(1, chunk // batch))
    pad = [(0, 0), (0, -length % size)] + [(0, 0)] * (x_BxLx.ndim - 2)
    x = jnp.pad(x_BxLx, pad).reshape(batch, -1, size, *x_BxLx.shape[2:])
    return x.swapaxes(0, 1)


def _join(x: Array, length: int) -> Array:
    """The inverse of `_cut`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
