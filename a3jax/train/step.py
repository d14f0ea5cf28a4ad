"""One optimizer step, compiled once per curriculum stage.

The order of every example is drawn inside the compiled step from (seed, step, example), so a step is a pure function
of the state and the batch, whatever the mesh. Micro-batches add sums, not means: the loss of a step is the mean over
all predicted tokens of the whole batch.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.devices import mesh as meshes
from a3jax.devices.context_parallel import place, spread
from a3jax.devices.mesh import BATCH, constrain, lay
from a3jax.model.adapters import without_adapters
from a3jax.model.parameters import graph, shapes
from a3jax.model.two_stream import Compute, TwoStream, sort
from a3jax.ordering import arrange, draw_mixture, example_keys
from a3jax.train import guard, remat
from a3jax.train.counts import Counts, counted, no_counts
from a3jax.train.loss import Teacher, nll_sum
from a3jax.train.optimizer import make_optimizer, schedule
from a3jax.train.trained import adapters, changes

Batch = dict[str, Array]


class State(NamedTuple):
    """Everything that a step changes."""

    params: nnx.State
    optimizer: guard.GuardedState
    step: Array
    skipped: Array
    """Steps of the curriculum that were passed over (`a3jax.curriculum.plateau`); changed between steps only."""
    source: nnx.State | None = None
    """The weights that a distilled model learns from. They never change, and no checkpoint holds them."""


class Metrics(NamedTuple):
    """What one step reports; stays on the device until it is logged."""

    loss: Array
    """Nats per predicted token."""
    gradient_norm: Array
    counts: Counts[Array]
    """What its windows held."""
    learning_rate: Array
    bad: Array
    """Whether the step changed nothing (`a3jax.train.guard`)."""


def compute(config: Config) -> Compute:
    """How this experiment computes a forward pass that nothing is differentiated through."""
    return Compute(jnp.dtype(config.train.compute_dtype), config.train.attention)


def single_stream(stage: Stage, model: ModelConfig) -> bool:
    """Whether queries equal the content stream one token earlier, so that one stream does the work of two."""
    return all(part.is_ar for part in stage.parts) and model.seeding == "successor"


def summed_loss(
    params: nnx.State,
    batch: Batch,
    keys_B: Array,
    model: ModelConfig,
    stage: Stage,
    how: Compute,
    chunk: int,
    source: nnx.State | None = None,
    distill: float = 0.0,
) -> tuple[Array, Counts[Array]]:
    """Sum of -log p over predicted tokens of `batch`, a share `distill` of it against a source model's; what was counted."""
    network = nnx.merge(graph(model), params)
    tokens_BxL = batch["tokens"]
    order = draw_mixture(keys_B, batch["segments"], stage.parts, model.seeding, batch.get("weights"), batch.get("sizes"))
    index_BxL, weight_BxL = order.token_index, order.predicted.astype(jnp.float32)
    if single_stream(stage, model):  # a slot's content predicts the token of the next
        index_BxL, weight_BxL = (jnp.roll(x, -1, axis=1) for x in (index_BxL, weight_BxL))
        hidden_BxLxD = network.content_hidden(tokens_BxL, jax.tree.map(spread, order), how)
    else:
        hidden_BxLxD = network.query_hidden(tokens_BxL, jax.tree.map(spread, order), how)
    target_BxL = sort(tokens_BxL, index_BxL)
    teacher = None if source is None else _teacher(source, tokens_BxL, batch["segments"], index_BxL, model, how, distill)
    total = nll_sum(hidden_BxLxD, network.output_matrix[...], spread(target_BxL), spread(weight_BxL), chunk, teacher)
    return total, counted(order, batch["segments"])


def _teacher(
    source: nnx.State, tokens_BxL: Array, segment_BxL: Array, index_BxL: Array, model: ModelConfig, how: Compute, share: float
) -> Teacher:
    """What the source model, reading from left to right, says of the tokens `index` of the window, spread over `context`."""
    network = nnx.merge(graph(without_adapters(model)), source)
    batch, length = tokens_BxL.shape
    nothing_BxL = jnp.zeros((batch, length), bool)
    place_BxL = jnp.broadcast_to(jnp.arange(length), (batch, length))
    arrange_in_order = jax.vmap(lambda group_L, given_L, segment_L: arrange(group_L, given_L, segment_L, "successor"))
    in_order = arrange_in_order(place_BxL, nothing_BxL, jnp.abs(segment_BxL))
    slot_BxL = jnp.argsort(in_order.token_index, axis=1)
    hidden_BxLxD = network.content_hidden(tokens_BxL, jax.tree.map(spread, in_order), how._replace(remat="none"))
    before_BxL = sort(slot_BxL, jnp.maximum(index_BxL - 1, 0))  # first tokens are never predicted
    # A row's teacher may be on any device along `context`, so these hold their windows' hidden states whole for once.
    hidden_BxLxD = sort(lay(hidden_BxLxD, BATCH), spread(place(before_BxL, length))[..., None])
    return Teacher(constrain(hidden_BxLxD, "BxLxD"), network.output_matrix[...], share)


def make_step(config: Config, model: ModelConfig, stage: Stage, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted step of one stage: (State, Batch) -> (State, Metrics). The state is donated.

    The batch of a stage that changes holds the weights and sizes of its parts too (`a3jax.curriculum.schedule.rows_at`).
    """
    rate = schedule(config.optimizer, stage.lr_factor * config.peak_lr, config.steps)
    how, parts, windows = compute(config), config.train.accumulate, config.at(stage).data.batch
    changed = changes(config.adapt, model)
    how = how._replace(remat=remat.choose(config, model, mesh, remat.device_memory(mesh.devices.flat[0])))
    kind = np.uint32(zlib.crc32(repr(stage.parts).encode()))

    def gradients(
        params: nnx.State, still: nnx.State, source: nnx.State | None, batch: Batch, keys: Array
    ) -> tuple[Array, Counts[Array], nnx.State]:
        def loss(params: nnx.State) -> tuple[Array, Counts[Array]]:
            whole = nnx.merge_state(params, still)
            return summed_loss(whole, batch, keys, model, stage, how, config.train.loss_chunk, source, config.adapt.distill)

        (total, counts), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return total, counts, grads

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys = example_keys(config.seed, state.step, windows)
        params, still = nnx.split_state(state.params, changed, ...)
        if parts == 1:
            total, counts, grads = gradients(params, still, state.source, batch, keys)
        else:
            micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (batch, keys))

            def add(sums: tuple, xs: tuple[Batch, Array]) -> tuple[tuple, None]:
                return jax.tree.map(jnp.add, sums, gradients(params, still, state.source, *xs)), None

            zeros = (jnp.zeros(()), no_counts(), jax.tree.map(jnp.zeros_like, params))
            (total, counts, grads), _ = jax.lax.scan(add, zeros, micro)
        count = jnp.maximum(counts.predicted, 1)
        loss, norm = total / count, optax.tree.norm(grads) / count
        grads = jax.tree.map(lambda g: g * (1 / count), grads)  # a division would not be fused into what follows
        rate_now = rate(state.step + state.skipped)
        optimizer = make_optimizer(config.optimizer, lambda _: rate_now)
        updates, optimizer_state, bad = guard.update(
            optimizer, grads, state.optimizer, params, loss, norm, jnp.asarray(kind), config.guard
        )
        params = nnx.merge_state(optax.apply_updates(params, updates), still)
        metrics = Metrics(loss, norm, counts, jnp.asarray(rate_now), bad)
        return State(params, optimizer_state, state.step + 1, state.skipped, state.source), metrics

    layout = state_shardings(config, model, mesh)
    return jax.jit(
        step,
        in_shardings=(layout, meshes.batch_sharding(mesh)),
        out_shardings=(layout, meshes.replicated(mesh)),
        donate_argnums=0,
    )


def abstract_state(config: Config, model: ModelConfig, mesh: Mesh) -> State:
    """The state's shapes and where every part of it lies, without arrays."""
    params = shapes(model)
    changed = nnx.filter_state(params, changes(config.adapt, model))
    optimizer = jax.eval_shape(functools.partial(guard.init, _any_optimizer(config)), changed)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    source = shapes(without_adapters(model)) if config.adapt.distill else None
    tree = State(params, optimizer, count, count, source)  # type: ignore[arg-type]
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, _layout(tree, mesh)
    )


def _any_optimizer(config: Config) -> optax.GradientTransformation:
    """That of any stage: their states begin alike."""
    return make_optimizer(config.optimizer, schedule(config.optimizer, config.peak_lr, config.steps))


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


def with_adapters(params: nnx.State, config: Config, model: ModelConfig, mesh: Mesh) -> nnx.State:
    """The parameters of a model without adapters, and new ones that change nothing yet."""
    new = adapters(model)
    return nnx.merge_state(params, random_params(config, model, mesh, lambda path, _: path[-1] in new))


def random_params(
    config: Config, model: ModelConfig, mesh: Mesh, which: Callable[[tuple, Any], bool] | None = None
) -> nnx.State:
    """Random weights, or some of them, made where they will lie; the query seed starts as the mean token embedding."""
    which = which or (lambda *_: True)

    def init() -> nnx.State:
        network = TwoStream(model, nnx.Rngs(config.seed))
        network.query_seed[...] = network.embedding[...].mean(0)
        return nnx.filter_state(nnx.state(network, nnx.Param), which)

    return jax.jit(init, out_shardings=nnx.filter_state(state_shardings(config, model, mesh).params, which))()
