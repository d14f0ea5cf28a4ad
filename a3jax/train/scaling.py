"""What Optax makes of gradients besides Adam, for our parameters: layers in one array, each a matrix of its own, over a mesh.

adafactor   second moments of rows and columns in place of those of elements (Shazeer & Stern, arXiv 1804.04235), without
            momentum and without scaling by the size of a parameter, so that a learning rate means what it means for AdamW
muon        momentum made orthogonal, of matrices and of the factors of adapters (Jordan; scaled as in arXiv 2502.16982, to
            the size of AdamW's updates); what is no product of rows is left to Adam

States are declared as parameters are: an array that goes with one carries its axes, by which it is laid over the mesh, but
for those that were summed over.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from a3jax.model.parameters import declared

FACTORED = 128
"""Of the two largest axes of a parameter, the least size of both from which Adafactor sums over them."""
RMS = 0.2
"""Of an update of AdamW, about: what Muon's are scaled to."""


def unless_bad(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same, whose moments stay where the step is `bad`; its counts go on."""

    def update(grads: Any, state: Any, params: Any = None, *, bad: Array | bool = False, **_: Any) -> tuple[Any, Any]:
        updates, new = inner.update(grads, state, params)
        kept = jax.tree.map(
            lambda old, now: jnp.where(bad, old, now) if jnp.issubdtype(now.dtype, jnp.inexact) else now, state, new
        )
        return updates, kept

    return optax.GradientTransformationExtraArgs(inner.init, update)


class MuonState(NamedTuple):
    """Of the parameters that rows are multiplied with, and of the others."""

    matrices: Any
    others: Any


def muon(adam: optax.GradientTransformationExtraArgs, eps: float, dtype: jnp.dtype) -> optax.GradientTransformationExtraArgs:
    """Muon with moments of a dtype for matrices, `adam` for what is none."""
    matrices = unless_bad(scale_by_muon(eps=eps, mu_dtype=dtype, weight_dimension_numbers=_dimensions))

    def init(params: nnx.State) -> MuonState:
        own, rest = _split(params)
        return MuonState(matrices.init(own), adam.init(rest))

    def update(grads: nnx.State, state: MuonState, params: Any = None, **how: Any) -> tuple[nnx.State, MuonState]:
        own, rest = _split(grads)
        own, of_own = matrices.update(own, state.matrices, None, **how)
        rest, of_rest = adam.update(rest, state.others, None, **how)
        own = jax.tree.map(_as_large_as_adams, own, is_leaf=_is_variable)
        return nnx.merge_state(own, rest), MuonState(of_own, of_rest)

    return optax.GradientTransformationExtraArgs(init, update)


def _as_large_as_adams(leaf: nnx.Variable) -> nnx.Variable:
    """Of an orthogonal matrix the root of the mean square is 1 over that of its longer side."""
    begin, middle, shape = *_sides(leaf), leaf.shape
    longer = max(math.prod(shape[begin:middle]), math.prod(shape[middle:]))
    return leaf.replace(RMS * math.sqrt(longer) * leaf[...])


def _sides(leaf: nnx.Variable) -> tuple[int, int]:
    """Where the axes of inputs and those of outputs begin; axes before them count matrices."""
    it = declared(leaf)
    return it.stacked, it.stacked + it.inputs


def _split(tree: nnx.State) -> tuple[nnx.State, nnx.State]:
    return nnx.split_state(tree, lambda _, leaf: declared(leaf).inputs > 0, ...)


def _dimensions(tree: nnx.State) -> nnx.State:
    """Which axes of every parameter are those of inputs and of outputs; layers and experts are matrices of their own."""

    def of(leaf: nnx.Variable) -> nnx.Variable:
        begin, middle = _sides(leaf)
        return leaf.replace(MuonDimensionNumbers(tuple(range(begin, middle)), tuple(range(middle, leaf.ndim))))

    return jax.tree.map(of, tree, is_leaf=_is_variable)


def adafactor() -> optax.GradientTransformationExtraArgs:
    """Adafactor, whose update of each matrix of a parameter is at most 1 in the root of its mean square."""
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=FACTORED)

    def init(params: nnx.State) -> optax.FactoredState:
        return _declared(inner.init(_plain(params)), params)

    def update(grads: nnx.State, state: optax.FactoredState, params: Any = None) -> tuple[nnx.State, optax.FactoredState]:
        updates, new = inner.update(_plain(grads), jax.tree.map(_plain, state, is_leaf=_is_state), _plain(grads))
        result = jax.tree.map(lambda x: x, grads)
        nnx.replace_by_pure_dict(result, updates)
        return jax.tree.map(_bounded, result, is_leaf=_is_variable), _declared(new, grads)

    return unless_bad(optax.GradientTransformation(init, update))


def _bounded(leaf: nnx.Variable) -> nnx.Variable:
    axes = tuple(range(declared(leaf).stacked, leaf.ndim))
    value = leaf[...]
    rms = jnp.sqrt(jnp.square(value).mean(axes, keepdims=True))
    return leaf.replace(value / jnp.maximum(1, rms))


def _declared(state: optax.FactoredState, params: nnx.State) -> optax.FactoredState:
    """The state with the axes that each of its arrays has left."""

    def without(which: int) -> Callable[[nnx.Variable], tuple[str, ...]]:
        def left(leaf: nnx.Variable) -> tuple[str, ...]:
            axes = declared(leaf).axes
            by_size = np.argsort(leaf.shape)
            if len(axes) < 2 or leaf.shape[by_size[-2]] < FACTORED:
                return ()  # one zero in its place
            return tuple(letter for axis, letter in enumerate(axes) if axis != by_size[which])

        return left

    def whole(leaf: nnx.Variable) -> tuple[str, ...]:
        return () if without(-1)(leaf) else declared(leaf).axes

    return optax.FactoredState(
        state.count,
        _with_axes(params, state.v_row, without(-1)),
        _with_axes(params, state.v_col, without(-2)),
        _with_axes(params, state.v, whole),
    )


def _with_axes(params: nnx.State, values: dict[str, Any], axes: Callable[[nnx.Variable], tuple[str, ...]]) -> nnx.State:
    found = nnx.traversals.flatten_mapping(values)
    leaves = nnx.to_flat_state(params)
    return nnx.from_flat_state([(path, leaf.replace(found[path], axes=axes(leaf))) for path, leaf in leaves])


def _plain(tree: Any) -> Any:
    return nnx.to_pure_dict(tree) if _is_state(tree) else tree


def _is_state(tree: Any) -> bool:
    return isinstance(tree, nnx.State)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
