"""The state of a run: what steps change, how it begins, and where over the mesh every part of it lies."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig
from a3jax.devices import mesh as meshes
from a3jax.model.adapters import source_of
from a3jax.model.parameters import declarations, named, shapes
from a3jax.model.two_stream import TwoStream
from a3jax.train import guard
from a3jax.train.optimizer import make_optimizer, schedule_of
from a3jax.train.trained import changes


class State(NamedTuple):
    """Everything that a step changes."""

    params: nnx.State
    optimizer: guard.GuardedState
    step: Array
    skipped: Array
    """Steps of the curriculum that were passed over (`a3jax.curriculum.plateau`); changed between steps only."""
    teacher: nnx.State | None = None
    """The weights that a distilled model learns from. They never change, and no checkpoint holds them."""


def abstract_state(config: Config, model: ModelConfig, mesh: Mesh) -> State:
    """The state's shapes and where every part of it lies, without arrays."""
    params = shapes(model)
    changed = nnx.filter_state(params, changes(config.adapt, model))
    optimizer = jax.eval_shape(functools.partial(guard.init, _any_optimizer(config)), changed)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    teacher = shapes(source_of(model)) if config.adapt.distill else None
    tree = State(params, optimizer, count, count, teacher)  # type: ignore[arg-type]
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, _layout(tree, mesh)
    )


def _any_optimizer(config: Config) -> optax.GradientTransformation:
    """That of any stage: their states begin alike."""
    return make_optimizer(config.optimizer, schedule_of(config.optimizer, config.peak_lr, config.schedule.lengths))


def state_shardings(config: Config, model: ModelConfig, mesh: Mesh) -> State:
    """Where every part of the state lies: parameters and their moments by their axes, the rest everywhere."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, model, mesh))


def _layout(tree: State, mesh: Mesh) -> State:
    def shard(leaf: nnx.Variable | jax.ShapeDtypeStruct) -> nnx.Variable | jax.sharding.NamedSharding:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(jax.sharding.NamedSharding(mesh, meshes.partition(leaf.get_metadata()["axes"])))
        return meshes.replicated(mesh)

    return jax.tree.map(shard, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def init_state(config: Config, params: nnx.State, model: ModelConfig, mesh: Mesh) -> State:
    """A fresh state around `params`, which are already laid over the mesh."""
    layout = state_shardings(config, model, mesh)
    init = jax.jit(functools.partial(guard.init, _any_optimizer(config)), out_shardings=layout.optimizer)
    changed = nnx.filter_state(params, changes(config.adapt, model))
    return with_counts(State(params, init(changed), layout.step, layout.skipped), 0, 0)


def with_counts(state: State, step: int, skipped: int) -> State:
    """A state with other counts, where its own lie, or would."""

    def put(count: int, place: Array | jax.sharding.Sharding) -> Array:
        return jax.device_put(jnp.asarray(count, jnp.int32), getattr(place, "sharding", place))

    return state._replace(step=put(step, state.step), skipped=put(skipped, state.skipped))


def with_new(params: nnx.State, config: Config, model: ModelConfig, mesh: Mesh) -> nnx.State:
    """The parameters of a source, and those of the model that it has not: adapters and seeds, which change nothing yet."""
    new = declarations(model).keys() - {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    return nnx.merge_state(params, random_params(config, model, mesh, named(new))) if new else params


def with_normal_seed(params: nnx.State, config: Config) -> nnx.State:
    """The parameters with a query seed that is drawn from N(0, 1) anew."""
    seed = nnx.filter_state(params, lambda path, _: path[-1] == "query_seed")

    def draw(old: nnx.State) -> nnx.State:
        return jax.tree.map(lambda x: jax.random.normal(jax.random.key(config.seed), x.shape, x.dtype), old)

    return nnx.merge_state(params, jax.jit(draw, out_shardings=jax.tree.map(lambda x: x.sharding, seed))(seed))


def random_params(
    config: Config, model: ModelConfig, mesh: Mesh, which: Callable[[tuple, Any], bool] | None = None
) -> nnx.State:
    """Random weights, or some of them, made where they will lie; the query seed starts as the mean token embedding."""
    which = which or (lambda *_: True)

    def init() -> nnx.State:
        module = TwoStream(model, nnx.Rngs(config.seed))
        module.query_seed[...] = module.embedding[...].mean(0)
        return nnx.filter_state(nnx.state(module, nnx.Param), which)

    return jax.jit(init, out_shardings=nnx.filter_state(state_shardings(config, model, mesh).params, which))()
