"""One optimizer step, compiled once per curriculum stage.

The order of every example is drawn inside the compiled step from (seed, step, example), so a step is a pure function
of the state and the batch, whatever the mesh.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.devices import mesh as meshes
from a3jax.model.experts import Routing
from a3jax.ordering import example_keys
from a3jax.train import guard, remat
from a3jax.train.counts import Counts
from a3jax.train.objectives import Batch, Sums, compute_of, objective_of
from a3jax.train.optimizer import first_steps, make_optimizer, schedule_of
from a3jax.train.routers import balance_weight
from a3jax.train.state import State, state_shardings
from a3jax.train.trained import changes


class Metrics(NamedTuple):
    """What one step reports; stays on the device until it is logged."""

    loss: Array
    """Nats per token (`Sums.tokens`)."""
    gradient_norm: Array
    counts: Counts[Array]
    """What its windows held."""
    learning_rate: Array
    bad: Array
    """Whether the step changed nothing (`a3jax.train.guard`)."""
    balance: Array | None
    """The load-balancing loss, where there are routers."""
    routing: Routing | None
    """What these did."""


def make_step(config: Config, model: ModelConfig, stage: Stage, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted step of one stage: (State, Batch) -> (State, Metrics). The state is donated.

    The batch of a stage that changes holds the weights and sizes of its parts too (`Schedule.rows`).
    """
    windows, micro_batches = config.schedule.windows(stage), config.train.accumulate
    compute = compute_of(config)._replace(remat=remat.choose(config, model, mesh, remat.device_memory(mesh.devices.flat[0])))
    objective = objective_of(config, model, stage, compute)
    changed, balance = changes(config.adapt, model), balance_weight(config.adapt, model)
    rate = schedule_of(config.optimizer, stage.lr_factor * config.peak_lr, config.schedule.lengths)
    begins = np.array(first_steps(config.schedule.lengths))
    kind = np.uint32(zlib.crc32(repr(stage.parts).encode()))

    def gradients(state: State, batch: Batch, keys_B: Array) -> tuple[Sums, nnx.State]:
        """The sums of a micro-batch, and the gradient of its summed loss in what changes; that of balance included."""
        params, frozen = nnx.split_state(state.params, changed, ...)

        def loss(params: nnx.State) -> tuple[Array, Sums]:
            done = state.step + state.skipped
            sums = objective.sums(nnx.merge_state(params, frozen), batch, keys_B, state.teacher, done)
            return sums.loss + (0 if sums.routers is None else balance * sums.routers.balance), sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return sums, grads

    def accumulated(state: State, batch: Batch, keys_B: Array) -> tuple[Sums, nnx.State]:
        """`gradients` of the whole batch, one micro-batch after the other."""
        if micro_batches == 1:
            return gradients(state, batch, keys_B)
        parts = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), (batch, keys_B))

        def add(total: tuple[Sums, nnx.State], part: tuple[Batch, Array]) -> tuple[tuple[Sums, nnx.State], None]:
            return jax.tree.map(jnp.add, total, gradients(state, *part)), None

        sums = jax.eval_shape(gradients, state, *jax.tree.map(lambda x: x[0], parts))[0]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
        of_nothing = jax.tree.map(jnp.zeros_like, nnx.filter_state(state.params, changed))
        return jax.lax.scan(add, (nothing, of_nothing), parts)[0]

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        sums, grads = accumulated(state, batch, example_keys(config.seed, state.step, windows))
        count = jnp.maximum(sums.tokens, 1)
        loss, norm = sums.loss / count, optax.tree.norm(grads) / count
        grads = jax.tree.map(lambda g: g * (1 / count), grads)  # a division would not be fused into what follows
        position = state.step + state.skipped
        rate_now = rate(position)
        optimizer = make_optimizer(config.optimizer, lambda _: rate_now)
        params, frozen = nnx.split_state(state.params, changed, ...)
        before = state.optimizer
        if config.optimizer.per_stage:
            before = guard.with_new(optimizer, before, params, (position == begins).any())
        updates, optimizer_state, bad = guard.update(
            optimizer, grads, before, params, loss, norm, jnp.asarray(kind), sums.tokens > 0, config.guard
        )
        params = nnx.merge_state(optax.apply_updates(params, updates), frozen)
        balanced, routing = (None, None) if sums.routers is None else (sums.routers.balance / count, sums.routers.did)
        metrics = Metrics(loss, norm, sums.counts, jnp.asarray(rate_now), bad, balanced, routing)
        return State(params, optimizer_state, state.step + 1, state.skipped, state.teacher), metrics

    layout = state_shardings(config, model, mesh)
    return jax.jit(
        step,
        in_shardings=(layout, meshes.batch_sharding(mesh)),
        out_shardings=(layout, meshes.replicated(mesh)),
        donate_argnums=0,
    )
