"""Schedules at their boundaries, and one AdamW step worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from a3jax.config import AdaptConfig, OptimizerConfig
from a3jax.model.parameters import shapes
from a3jax.train.optimizer import first_steps, make_optimizer, schedule, schedule_of
from a3jax.train.trained import changes

PEAK = 1e-3


def rates(steps=100, **changes):
    settings = {"warmup": 10, "decay": 0.2, "final_lr": 0.1, **changes}
    return schedule(OptimizerConfig(**settings), PEAK, steps)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
def test_warm_up_rises_linearly_from_one_part_to_the_peak(kind):
    rate = rates(schedule=kind)
    np.testing.assert_allclose([rate(step) for step in range(10)], PEAK * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rate(10), PEAK, rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 0), (100, 1), (5, 10), (1, 10), (1, 0)])
def test_short_runs_and_short_warm_ups_give_positive_rates_up_to_the_peak(kind, steps, warmup):
    rate = rates(steps, schedule=kind, warmup=warmup)
    values = np.array([rate(step) for step in range(steps)])
    assert (values > 0).all()
    assert (values <= PEAK * (1 + 1e-6)).all()
    if warmup <= 1:
        np.testing.assert_allclose(values[0], PEAK, rtol=1e-6)


def test_constant_stays_at_the_peak():
    rate = rates(schedule="constant")
    np.testing.assert_allclose([rate(step) for step in (10, 50, 99, 1000)], PEAK, rtol=1e-6)


def test_cosine_is_half_way_in_the_middle_and_final_at_the_end():
    rate = rates(schedule="cosine")
    half_cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(0, 91) / 90)) / 2
    np.testing.assert_allclose([rate(step) for step in range(10, 101)], PEAK * half_cosine, rtol=1e-5)
    np.testing.assert_allclose(rate(55), PEAK * 0.55, rtol=1e-5)
    np.testing.assert_allclose(rate(500), PEAK * 0.1, rtol=1e-5)


def test_wsd_is_constant_until_the_last_fifth_and_then_linear():
    rate = rates(schedule="wsd")
    np.testing.assert_allclose([rate(step) for step in (10, 79, 80)], PEAK, rtol=1e-6)
    np.testing.assert_allclose([rate(step) for step in range(80, 101)], PEAK * np.linspace(1, 0.1, 21), rtol=1e-5)
    np.testing.assert_allclose(rate(101), PEAK * 0.1, rtol=1e-5)


def test_linear_falls_to_its_end_with_the_last_step():
    """After warm-up it is transformers' `get_linear_schedule_with_warmup`, which reaches 0 behind the last step."""
    rate = rates(schedule="linear", final_lr=0.0)
    left = (100 - np.arange(10, 100)) / (100 - 10)
    np.testing.assert_allclose([rate(step) for step in range(10, 100)], PEAK * left, rtol=1e-5)


def test_every_stage_has_the_schedule_of_a_run_of_its_own():
    config, stages = OptimizerConfig(schedule="linear", warmup=3, per_stage=True), (8, 0, 2, 5)
    assert first_steps(stages) == [0, 8, 10]
    alone = [schedule(config, PEAK, steps)(step) for steps in stages for step in range(steps)]
    rate = schedule_of(config, PEAK, stages)
    np.testing.assert_array_equal([rate(step) for step in range(sum(stages))], alone)
    over_all = schedule_of(dataclasses.replace(config, per_stage=False), PEAK, stages)
    np.testing.assert_array_equal(
        [over_all(step) for step in (2, 8, 14)], [schedule(config, PEAK, 15)(s) for s in (2, 8, 14)]
    )


def test_a_decay_longer_than_what_follows_warm_up_begins_after_it():
    rate = rates(schedule="wsd", decay=1.0)
    np.testing.assert_allclose([rate(step) for step in (9, 10, 55, 100)], PEAK * np.array([1, 1, 0.55, 0.1]), rtol=1e-5)


MATRICES = {"embedding", "head", "query", "key", "value", "output", "gate", "up", "down"}


@pytest.fixture(scope="module")
def params(tiny, network):
    return nnx.state(network(tiny(qkv_bias=True, query_key_norm="full")), nnx.Param)


def step(config, params, gradients, state=None, steps=100):
    optimizer = make_optimizer(config, schedule(config, config.peak_lr, steps))
    state = optimizer.init(params) if state is None else state
    updates, state = jax.jit(optimizer.update)(gradients, state, params)
    return optax.apply_updates(params, updates), state


def test_only_matrices_decay(params):
    config = OptimizerConfig(peak_lr=0.5, warmup=0, schedule="constant", weight_decay=0.1)
    after, _ = step(config, params, jax.tree.map(jnp.zeros_like, params))
    names = set()
    for (path, old), (_, new) in zip(nnx.to_flat_state(params), nnx.to_flat_state(after), strict=True):
        factor = 0.95 if path[-1] in MATRICES else 1.0
        np.testing.assert_allclose(new[...], factor * old[...], rtol=1e-6, err_msg=str(path))
        names.add(path[-1])
    assert names > MATRICES


def test_two_steps_equal_adamw_written_out(params):
    config = OptimizerConfig(peak_lr=1e-2, warmup=2, schedule="constant", weight_decay=0.1, clip=1.0, b2=0.9)
    rng = np.random.default_rng(0)
    expected = {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(params)}
    first = dict.fromkeys(expected, 0.0)
    second = dict.fromkeys(expected, 0.0)
    state = None
    for t, scale in enumerate([1.0, 1e-4], 1):  # the first gradient is clipped, the second is not
        gradients = jax.tree.map(lambda p, s=scale: jnp.asarray(s * rng.normal(size=p.shape), jnp.float32), params)
        flat = {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(gradients)}
        norm = np.sqrt(sum((g * g).sum() for g in flat.values()))
        assert (norm > config.clip) == (t == 1)
        params, state = step(config, params, gradients, state)
        for path, g in flat.items():
            g = g / max(1.0, norm / config.clip)
            first[path] = config.b1 * first[path] + (1 - config.b1) * g
            second[path] = config.b2 * second[path] + (1 - config.b2) * g * g
            move = first[path] / (1 - config.b1**t) / (np.sqrt(second[path] / (1 - config.b2**t)) + config.eps)
            decay = config.weight_decay * expected[path] * (path[-1] in MATRICES)
            expected[path] = expected[path] - config.peak_lr * t / 2 * (move + decay)
    for path, leaf in nnx.to_flat_state(params):
        np.testing.assert_allclose(leaf[...], expected[path], rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_every_parameter_of_the_network_is_known_to_the_decay_rule(tiny):
    names = {path[-1] for path, _ in nnx.to_flat_state(shapes(tiny(qkv_bias=True, query_key_norm="head")))}
    assert all(name in MATRICES or name.endswith(("norm", "bias", "seed")) for name in names)


@pytest.mark.parametrize("stream", ["query", "both"])
def test_adapters_decay_as_in_adamw_and_the_query_seed_does_not(stream, tiny, network):
    """What is trained by default, over three steps, against Optax's own AdamW and a mask written by hand."""
    params = nnx.state(network(tiny(adapter_rank=2, adapter_stream=stream)), nnx.Param)
    params = nnx.filter_state(params, changes(AdaptConfig(), tiny(adapter_rank=2, adapter_stream=stream)))
    config = OptimizerConfig(peak_lr=0.1, warmup=0, schedule="constant", weight_decay=0.5, clip=1e9)
    expected = {path: leaf[...] for path, leaf in nnx.to_flat_state(params)}
    mask = {path: path[-1].endswith(("_in", "_out")) for path in expected}
    assert sorted(path[-1] for path in expected if not mask[path]) == ["query_seed"]
    adamw = optax.adamw(0.1, config.b1, config.b2, config.eps, weight_decay=0.5, mask=mask)
    state, others = None, adamw.init(expected)
    for number in range(3):
        rng = np.random.default_rng(number)
        gradients = jax.tree.map(lambda p: jax.device_put(np.float32(rng.normal(size=p.shape))), params)  # noqa: B023
        params, state = step(config, params, gradients, state)
        updates, others = jax.jit(adamw.update)({p: g[...] for p, g in nnx.to_flat_state(gradients)}, others, expected)
        expected = optax.apply_updates(expected, updates)
    for path, leaf in nnx.to_flat_state(params):
        np.testing.assert_allclose(leaf[...], expected[path], rtol=1e-5, atol=1e-6, err_msg=str(path))
