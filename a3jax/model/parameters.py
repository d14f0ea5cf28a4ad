"""A parameter's shape, logical axes and initial value, declared once.

Axes are written with the letters of the array names: a parameter "NxDxHxE" has the sizes of those letters in the model
configuration, and `a3jax.devices.mesh` reads the same letters to lay it over devices.
"""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from a3jax.config import ModelConfig

Initializer = Callable[..., jax.Array]


def parameter(config: ModelConfig, axes: str, initializer: Initializer, rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter with axes such as "NxDxF".

    N layers, D width, F feed-forward, H and K heads, E head, V vocabulary, A adapter.
    """
    sizes = {
        "N": config.layers,
        "D": config.width,
        "F": config.ff_width,
        "H": config.query_heads,
        "K": config.kv_heads,
        "E": config.head_width,
        "V": config.vocab,
        "A": config.adapter_rank,
    }
    letters = tuple(axes.split("x"))
    return nnx.Param(initializer(rngs.params(), tuple(sizes[letter] for letter in letters)), axes=letters)


def graph(config: ModelConfig) -> nnx.GraphDef:
    """The network without its parameters: `nnx.merge(graph(config), parameters)` is the network again."""
    return _outline(config)[0]


def shapes(config: ModelConfig) -> nnx.State:
    """The whole parameter tree as shapes and axes, without allocating anything."""
    return jax.tree.map(lambda shape: shape, _outline(config)[1])  # a tree of the caller's own, who may change it


@functools.cache
def _outline(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The network's structure and parameters. Kept, for a run asks for them many times; hence the same under any mesh."""
    from a3jax.model.two_stream import TwoStream

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return nnx.split(nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0))), nnx.Param)


def count(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config)))
