"""Optimizers by name: each is Optax's own on every matrix of every layer, lies over a mesh as it should, and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chosen import long_after
from flax import nnx
from optax.contrib import muon

from a3jax.config import OptimizerConfig
from a3jax.errors import UserError
from a3jax.train.optimizer import make_optimizer, moment_bytes

RATE = 1e-2


@pytest.fixture(scope="module")
def params(tiny, network):
    """With axes of 128 and more, so that Adafactor sums over some of them."""
    heads = {"query_heads": 2, "kv_heads": 1, "head_width": 8}
    return nnx.state(network(tiny(layers=2, width=160, ff_width=130, vocab=140, adapter_rank=2, **heads)), nnx.Param)


def by_layer(state) -> dict[str, np.ndarray]:
    """Every matrix by itself, a product of rows as one of two axes."""
    found = {}
    for path, leaf in nnx.to_flat_state(state):
        axes, inputs, array = leaf.get_metadata()["axes"], leaf.get_metadata()["inputs"], np.asarray(leaf[...])
        for layer, one in enumerate(array if axes[0] == "N" else [array]):
            if inputs:
                one = one.reshape(np.prod(one.shape[:inputs]), -1)
            found[f"{path[-1]}.{layer}"] = jax.device_put(one)
    return found


def gradients(params, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jax.device_put((0.1 * rng.normal(size=p.shape)).astype(np.float32)), params)


def stepping(optimizer):
    """A step with it, compiled."""

    @jax.jit
    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def is_matrix(name: str, array: jax.Array) -> bool:
    return array.ndim == 2 and not name.startswith(("embedding", "head"))


OPTAX = {
    "lion": lambda config: optax.lion(RATE, config.b1, config.b2, weight_decay=0.0),
    "adafactor": lambda _: optax.adafactor(RATE, multiply_by_parameter_scale=False),
    # By itself Optax's Muon gives what is no matrix to an Adam with Nesterov's momentum, which ours is without.
    "muon": lambda config: optax.partition(
        {
            "matrices": muon(RATE, eps=config.eps, consistent_rms=0.2),
            "others": optax.adam(RATE, config.b1, config.b2, config.eps),
        },
        lambda tree: {name: "matrices" if is_matrix(name, x) else "others" for name, x in tree.items()},
    ),
}


@pytest.mark.parametrize("name", long_after(1, OPTAX))
def test_three_steps_are_optax_s_own_on_every_matrix_by_itself(name, params):
    config = OptimizerConfig(name=name, weight_decay=0.0, clip=1e9)
    ours, theirs = make_optimizer(config, optax.constant_schedule(RATE)), OPTAX[name](config)
    if name == "adafactor":  # heads stay apart from their width, so those are no matrices of two axes
        params = nnx.filter_state(
            params, lambda path, leaf: leaf.get_metadata()["axes"][-1] not in "HE" and "H" not in leaf.get_metadata()["axes"]
        )
    state, expected = ours.init(params), by_layer(params)
    others, follow, step = theirs.init(expected), stepping(theirs), stepping(ours)
    for seed in range(3):
        grads = gradients(params, seed)
        expected, others = follow(by_layer(grads), others, expected)
        params, state = step(grads, state, params)
    for path, array in by_layer(params).items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("name", long_after(1, ["lion", "adamw", "muon"]))
def test_moments_in_bfloat16_take_half_and_stay_near(name, params):
    after, sizes = [], []
    for moments in ("float32", "bfloat16"):
        config = OptimizerConfig(name=name, moments=moments)
        optimizer = make_optimizer(config, optax.constant_schedule(RATE))
        now, state, step = params, optimizer.init(params), stepping(optimizer)
        for seed in range(3):
            now, state = step(gradients(params, seed), state, now)
        after.append(now)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim))
        least = moment_bytes(config) * sum(leaf.size for leaf in jax.tree.leaves(params))
        assert least <= sizes[-1] <= least + (0 if name != "muon" else least) + 64
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=1e-3)
    moved = [jax.tree.map(lambda new, old: new - old, one, params) for one in after]
    difference, whole = (optax.tree.norm(tree) for tree in (jax.tree.map(jnp.subtract, *moved), moved[0]))
    assert difference < (0.2 if name == "lion" else 0.02) * whole


@pytest.mark.parametrize("name", long_after(1, ["lion", "adafactor", "muon"]))
def test_a_bad_step_changes_no_moments(name, params):
    optimizer = make_optimizer(OptimizerConfig(name=name), optax.constant_schedule(RATE))
    grads = gradients(params, 0)
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    _, after = jax.jit(lambda g, s, p: optimizer.update(g, s, p, norm=jnp.float32(1), bad=True))(bad, state, params)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        if x.ndim:
            np.testing.assert_array_equal(x, y)


def test_moments_that_could_not_fall_are_refused():
    from a3jax.config import Config

    for changes, message in [
        ({"moments": "bfloat16", "b2": 0.999}, r"optimizer\.b2 is 0\.999, .* it must be at most 0\.99"),
        ({"moments": "bfloat16", "name": "adafactor"}, r"optimizer\.moments is bfloat16, but adafactor keeps no moments"),
    ]:
        with pytest.raises(UserError, match=message):
            Config("x", source="y", optimizer=OptimizerConfig(**changes))


# Where a moment is rounded to, and which sign an update has whose momentum is next to nothing, the last bit of a sum decides,
# which is another over a mesh. All that two steps change is about 2e-3 of an array.
BY_THE_LAST_BIT = {"lion": 5e-4, "adamw in bfloat16": 1e-4}


@pytest.mark.long
def test_every_state_lies_over_the_mesh_resumes_bit_for_bit_and_is_planned_as_large_as_it_is(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("optimizer_process.py")
    done = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["difference"] < BY_THE_LAST_BIT.get(name, 1e-5), name
        assert found["resumed"], name
        assert found["planned"] == found["held"] < 0.3 * found["whole"], name
