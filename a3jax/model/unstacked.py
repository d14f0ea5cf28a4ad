"""Layers' matrices as arrays of their own, which a loop over layers multiplies with where they lie.

A CPU's matrix products take whole arrays. Of weights that are stacked over layers each layer's part is therefore copied
before it is multiplied with, and decoding, which does little else than read weights, reads and writes them once more than it
has to. So a model that is loaded on a CPU for anything but training has its matrices apart. The loop over layers is still one
loop, compiled once: only a product itself is chosen by the number of the layer (`OfLayer`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from a3jax.model.parameters import declared

KINDS = ("matrix",)
"""What is taken apart: nearly all that a layer reads. Vectors and adapters, which are small, stay stacked, so that programs
have fewer branches to trace; and so do experts, which are gathered."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unstacked:
    """What stands in the place of an array that is stacked over layers: one array for each."""

    layers: tuple[Array, ...]

    def __getitem__(self, key: Any) -> Any:
        """Some layers, one of them, or itself."""
        if key is Ellipsis:
            return self
        return Unstacked(self.layers[key]) if isinstance(key, slice) else self.layers[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The stack, as NumPy asks for it: a copy."""
        return np.stack(self.layers).astype(dtype or self.dtype, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stack."""
        return len(self.layers), *self.layers[0].shape

    @property
    def dtype(self) -> Any:
        """That of the stack."""
        return self.layers[0].dtype

    def astype(self, dtype: Any) -> "Unstacked":
        """All layers in another type."""
        return Unstacked(tuple(layer.astype(dtype) for layer in self.layers))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfLayer:
    """The array of the layer that a loop is at, whose number is known when it runs."""

    layers: tuple[Array, ...]
    number: Array

    def __getitem__(self, key: Any) -> "OfLayer":
        """Itself; it has no other parts."""
        if key is not Ellipsis:
            raise TypeError("which array this is shows when the program runs; ask `with_it`")
        return self

    def with_it(self, function: Callable[[Array], Array]) -> Array:
        """What a function makes of the array."""
        return jax.lax.switch(self.number, [functools.partial(function, layer) for layer in self.layers])


def unstacked(params: nnx.State) -> nnx.State:
    """The parameters with those of `KINDS` taken apart; the arrays given of those are used up."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        stack = leaf[...]
        if declared(leaf).kind in KINDS and len(stack) > 1:
            leaf = leaf.replace(Unstacked(tuple(jax.device_put(layer, may_alias=False) for layer in np.asarray(stack))))
            stack.delete()  # so that memory holds one more at most
        flat.append((path, leaf))
    return nnx.from_flat_state(flat)


def some(layers: Any, which: slice | int) -> Any:
    """Some layers, or one, of all that there is of them."""
    return jax.tree.map(lambda leaf: leaf[which], layers, is_leaf=_is_unstacked)


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` over layers, of which some arrays are `Unstacked`: a step sees those as `OfLayer`."""
    leaves, tree = jax.tree.flatten(layers, is_leaf=_is_unstacked)
    apart = [leaf for leaf in leaves if _is_unstacked(leaf)]
    if not apart:
        return jax.lax.scan(step, carry, layers)

    def numbered(carry: Any, xs: tuple[Array, list[Array]]) -> tuple[Any, Any]:
        number, stacked = xs[0], iter(xs[1])
        own = [OfLayer(leaf.layers, number) if _is_unstacked(leaf) else next(stacked) for leaf in leaves]
        return step(carry, jax.tree.unflatten(tree, own))

    stacked = [leaf for leaf in leaves if not _is_unstacked(leaf)]
    return jax.lax.scan(numbered, carry, (jnp.arange(len(apart[0].layers)), stacked))


def _is_unstacked(leaf: object) -> bool:
    return isinstance(leaf, Unstacked)
