"""One optimizer step: micro-batches, the single-stream shortcut, compilation and donation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from a3jax.config import Config, DataConfig, Experts, MeshConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.devices.mesh import make_mesh
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import example_keys
from a3jax.train import step as steps
from a3jax.train.objectives import any_order
from a3jax.train.state import init_state, random_params, with_counts, with_normal_seed

L, BATCH = 24, 4


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def experiment(model, accumulate=1, stage=None):
    return Config(
        name="test",
        model=model,
        seed=3,
        data=DataConfig(length=L, batch=BATCH),
        curriculum=(stage or Stage(10, "random", 4, 0.5),),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=0),
        train=TrainConfig(compute_dtype="float32", accumulate=accumulate, remat="none", loss_chunk=40),
    )


@pytest.fixture(scope="module")
def batch():
    """Windows with very different numbers of predicted tokens."""
    segments = np.stack([[1] * L, [1] * 3 + [0] * (L - 3), [1] * 9 + [2] * 2 + [3] * 13, [1] * 8 + [0] * (L - 8)])
    tokens = np.random.default_rng(0).integers(0, 48, segments.shape)
    return {"tokens": tokens.astype(np.int32), "segments": segments.astype(np.int32)}


def fresh(config, mesh):
    params = random_params(config, config.model, mesh)
    with jax.set_mesh(mesh):
        return init_state(config, params, config.model, mesh)


@pytest.fixture(scope="module")
def two_steps(tiny, batch, mesh):
    """Parameters and metrics after two steps, by number of micro-batches."""

    def run(accumulate):
        config = experiment(tiny(layers=2), accumulate)
        state, step = fresh(config, mesh), steps.make_step(config, config.model, config.curriculum[0], mesh)
        with jax.set_mesh(mesh):
            state, first = step(state, batch)
            state, second = step(state, batch)
        return jax.tree.map(np.asarray, (nnx.to_pure_dict(state.params), first, second))

    return {accumulate: run(accumulate) for accumulate in (1, 2, 4)}


@pytest.mark.long
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_change_nothing(two_steps, accumulate):
    expected, actual = two_steps[1], two_steps[accumulate]
    assert expected[1].counts == actual[1].counts
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_routers_are_told_of_over_micro_batches(tiny, batch, mesh):
    """Rows add up; the load-balancing loss is each micro-batch's, by its tokens."""
    found = {}
    for accumulate in (1, 2):
        config = experiment(tiny(layers=2, experts=Experts(4, 2)), accumulate)
        with jax.set_mesh(mesh):
            step = steps.make_step(config, config.model, config.curriculum[0], mesh)
            found[accumulate] = step(fresh(config, mesh), batch)[1]
    for one, two in zip(found[1].routing, found[2].routing):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    assert float(found[1].routing.chosen_X.sum()) == 2 * float(found[1].routing.rows.sum())
    assert 1.5 < float(found[2].balance) < 3


def test_the_loss_falls_and_each_step_draws_its_own_order(two_steps):
    _, first, second = two_steps[1]
    assert second.loss < first.loss
    assert second.counts.predicted != first.counts.predicted


def losses(net, batch, model, stage):
    split, params = nnx.split(net)
    objective = any_order.AnyOrder(model, stage, Compute(attention="dense"), chunk=40)

    def mean(params):
        total, _, counts, _ = objective.sums(params, batch, example_keys(0, 0, BATCH))
        return total / counts.predicted, counts.predicted

    assert split == graph(model)
    return jax.jit(jax.value_and_grad(mean, has_aux=True))(params)


def test_the_single_stream_shortcut_equals_the_two_streams(tiny, network, batch, monkeypatch):
    model, stage = tiny(layers=2, qkv_bias=True), Stage(1, "in_order", 1)
    net = network(model)
    assert one_stream_is_enough(model, stage.is_ar)
    (one, count), d_one = losses(net, batch, model, stage)
    monkeypatch.setattr(any_order, "one_stream_is_enough", lambda *_: False)
    (two, same_count), d_two = losses(net, batch, model, stage)
    assert count == same_count == sum((np.diff(s) == 0)[s[1:] > 0].sum() for s in batch["segments"])
    np.testing.assert_allclose(one, two, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(d_one), jax.tree.leaves(d_two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(a).max()))


@pytest.fixture(scope="module")
def simple(tiny, mesh):
    """A configuration without weight decay, and its step."""
    config = dataclasses.replace(experiment(tiny(layers=1)), optimizer=OptimizerConfig(warmup=0, weight_decay=0.0))
    return config, steps.make_step(config, config.model, config.curriculum[0], mesh)


def test_a_step_compiles_once_and_takes_the_state_that_it_is_given(simple, batch, mesh):
    config, step = simple
    state = fresh(config, mesh)
    with jax.set_mesh(mesh):
        for number in range(3):
            before = state
            state, metrics = step(state, batch)
            assert int(state.step) == number + 1
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert step._cache_size() == 1
    assert metrics.loss.dtype == metrics.gradient_norm.dtype == jnp.float32


def test_a_batch_without_predicted_tokens_changes_no_parameter(simple, batch, mesh):
    config, step = simple
    state = fresh(config, mesh)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(state.params))
    with jax.set_mesh(mesh):
        state, metrics = step(state, {"tokens": batch["tokens"], "segments": np.zeros_like(batch["segments"])})
    assert (metrics.loss, metrics.gradient_norm) == (0, 0)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(state.params), before)


def test_random_weights_depend_on_the_seed_and_the_query_seed_is_the_mean_embedding(tiny, mesh):
    config = experiment(tiny(layers=1))
    one, other = (random_params(dataclasses.replace(config, seed=seed), config.model, mesh) for seed in (3, 4))
    assert (one["embedding"][...] != other["embedding"][...]).any()
    np.testing.assert_allclose(one["query_seed"][...], one["embedding"][...].mean(0), atol=1e-7)


def test_a_query_seed_drawn_anew_is_normal_and_all_else_stays(tiny, mesh):
    config = experiment(tiny(layers=1, width=2048, vocab=8))
    params = random_params(config, config.model, mesh)
    one, same = (with_normal_seed(params, config) for _ in range(2))
    other = with_normal_seed(params, dataclasses.replace(config, seed=4))
    seed = np.asarray(one["query_seed"][...])
    assert abs(seed.mean()) < 0.1
    assert abs(seed.std() - 1) < 0.1
    np.testing.assert_array_equal(seed, same["query_seed"][...])
    assert (seed != other["query_seed"][...]).all()
    for (path, old), (_, new) in zip(nnx.to_flat_state(params), nnx.to_flat_state(one), strict=True):
        assert path[-1] == "query_seed" or (old[...] == new[...]).all()


@pytest.mark.long
def test_an_optimizer_of_its_own_begins_with_every_stage(tiny, batch, mesh):
    """The first step of a stage is that of a run which begins with the weights so far; the next one goes on from there."""
    stages = (Stage(2, "random", 4), Stage(0), Stage(5, "random", 8))
    optimizer = OptimizerConfig(peak_lr=1e-2, warmup=0, schedule="constant", per_stage=True)
    config = dataclasses.replace(experiment(tiny(layers=2)), curriculum=stages, optimizer=optimizer)
    through = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, per_stage=False))
    each = ((config, stages[0]), (config, stages[2]), (through, stages[2]))
    first, own, plain = (steps.make_step(one, one.model, stage, mesh) for one, stage in each)

    def anew(state):
        return with_counts(init_state(config, state.params, config.model, mesh), int(state.step), 0)

    def copy(state):
        return jax.tree.map(jnp.copy, state)

    with jax.set_mesh(mesh):
        state = first(first(fresh(config, mesh), batch)[0], batch)[0]
        expected, _ = plain(anew(copy(state)), batch)
        kept, _ = plain(copy(state), batch)
        bad, metrics = own(copy(state), {**batch, "tokens": np.full_like(batch["tokens"], 10**6)})
        state, _ = own(state, batch)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert not np.allclose(state.params["embedding"][...], kept.params["embedding"][...], atol=1e-5)
        again, _ = own(copy(state), batch)
        goes_on, _ = plain(state, batch)
        np.testing.assert_allclose(again.params["embedding"][...], goes_on.params["embedding"][...], rtol=1e-5, atol=1e-6)
    assert metrics.bad, "a first step that is bad"
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(bad.optimizer.optimizer) if leaf.ndim), "begins anew all the same"
