"""A parameter's kind, shape, logical axes and initial value, declared once.

Axes are written with the letters of the array names: a parameter "NxDxHxE" has the sizes of those letters in the model
configuration, and `a3jax.devices.mesh` reads the same letters to lay it over devices. "NxD->HxE" has the same axes, and says
which of them rows are multiplied with.

All that is true of some parameters only follows from their kinds: what decays (`a3jax.train.optimizer`), what
`adapt.frozen` may mean (`a3jax.train.trained`), what has adapters (`a3jax.model.adapters`), what arithmetic rows cost
(`a3jax.train.flops`), and which axes a stored tensor has (`a3jax.weights.table`). Nobody else lists names.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from a3jax.config import ModelConfig

Initializer = Callable[..., jax.Array]
Kind = Literal["matrix", "router", "expert", "norm", "bias", "embedding", "head", "adapter", "seed"]
"""`matrix`: what rows of a layer are multiplied with; `expert`: several of them, of which each row is multiplied with some;
`router`: the matrix that says with which; `adapter`: a factor of the low-rank change of a matrix; `seed`: of what
queries start from."""


class Declared(NamedTuple):
    """What a parameter is."""

    axes: tuple[str, ...]
    kind: Kind
    inputs: int
    """How many axes, after those that it is stacked over, rows are multiplied with; 0 for what is no product of rows."""

    @property
    def stacked(self) -> int:
        """How many of its first axes count parameters of the same kind: layers, and experts in a layer."""
        return sum(letter == axis for letter, axis in zip(self.axes[:-1], "NX"))  # a router's bias has X numbers


def parameter(config: ModelConfig, axes: str, kind: Kind, initializer: Initializer, rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter of a kind with axes such as "NxD->F" (a product of rows) or "NxD"."""
    before, arrow, _ = axes.partition("->")
    letters, stacked = tuple(axes.replace("->", "x").split("x")), axes.startswith("Nx") + axes.startswith("NxXx")
    value = initializer(rngs.params(), tuple(size_of(config)[letter] for letter in letters))
    return nnx.Param(value, axes=letters, kind=kind, inputs=before.count("x") + 1 - stacked if arrow else 0)


def size_of(config: ModelConfig) -> dict[str, int]:
    """The sizes of axes: N layers, D width, F feed-forward, X experts, H and K heads, E head, V vocabulary, A adapter;
    S is a width that is not split."""
    return {
        "N": config.layers,
        "D": config.width,
        "F": config.ff_width,
        "X": config.experts.count if config.experts else 0,
        "H": config.query_heads,
        "K": config.kv_heads,
        "E": config.head_width,
        "V": config.vocab,
        "A": config.adapter_rank,
        "S": config.width,
    }


def declared(variable: nnx.Variable) -> Declared:
    """What was declared of a parameter, or of whatever stands in its place: a moment, a shape, a sharding."""
    metadata = variable.get_metadata()
    return Declared(metadata["axes"], metadata["kind"], metadata["inputs"])


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The network without its parameters: `nnx.merge(graph(config), parameters)` is the network again."""
    return _outline(config)[0]


def shapes(config: ModelConfig) -> nnx.State:
    """The whole parameter tree as shapes and axes, without allocating anything."""
    return jax.tree.map(lambda shape: shape, _outline(config)[1])  # a tree of the caller's own, who may change it


@functools.cache
def declarations(config: ModelConfig) -> dict[str, Declared]:
    """What every parameter is, by its dotted path such as "blocks.query"."""
    return {".".join(map(str, path)): declared(leaf) for path, leaf in nnx.to_flat_state(_outline(config)[1])}


def named(names: Collection[str]) -> Callable[[tuple, Any], bool]:
    """An NNX filter of the parameters with these dotted paths."""
    return lambda path, _: ".".join(map(str, path)) in names


@functools.cache
def _outline(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The network's structure and parameters. Kept, for a run asks for them many times; hence the same under any mesh."""
    from a3jax.model.two_stream import TwoStream

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return nnx.split(nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0))), nnx.Param)


def count(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config)))
