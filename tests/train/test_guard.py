"""Bad steps: seen where they happen, without effect on parameters, and answered as the experiment wants."""

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from a3jax.config import GuardConfig, OptimizerConfig
from a3jax.data.pipeline import Batches
from a3jax.errors import UserError
from a3jax.train import guard
from a3jax.train.loop import train
from a3jax.train.metrics import read
from a3jax.train.optimizer import make_optimizer

OPTIMIZER = make_optimizer(OptimizerConfig(clip=10.0, weight_decay=0.0), lambda _: 0.1)
"""Clips none of the gradients below."""
STOP = GuardConfig()
PARAMS = {"w": jnp.asarray([1.0, -2.0])}


def go(losses, config=STOP, stages=None, norms=None, idle=()):
    """Whether each step was bad, and the parameters after each."""
    state, params, found, history = guard.init(OPTIMIZER, PARAMS), PARAMS, [], []
    for i, loss in enumerate(losses):
        norm = norms[i] if norms else 1.0
        grads = {"w": jnp.full(2, 0.5 if math.isfinite(loss) and math.isfinite(norm) else math.nan)}
        stage, learned = jnp.uint32(stages[i] if stages else 7), i not in idle
        updates, state, bad = guard.update(
            OPTIMIZER, grads, state, params, jnp.float32(loss), jnp.float32(norm), stage, jnp.bool_(learned), config
        )
        params = optax.apply_updates(params, updates)
        found.append(bool(bad))
        history.append(np.asarray(params["w"]))
    return found, history


def test_a_bad_step_leaves_parameters_and_moments_as_they_were():
    for loss, norm in [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)]:
        bad, history = go([2.0, loss, 2.0], norms=[1.0, norm, 1.0])
        assert bad == [False, True, False]
        np.testing.assert_array_equal(history[1], history[0])
        assert np.isfinite(history[2]).all()
        assert (history[2] != history[1]).all()


def test_steps_with_nothing_to_learn_change_nothing_and_are_no_measure_of_a_jump():
    losses = [0.0 if i % 2 else 2.0 for i in range(40)]
    bad, history = go(losses, GuardConfig("skip", spike=0.5), idle=range(1, 40, 2))
    assert not any(bad)
    for before, after in zip(history[::2], history[1::2]):
        np.testing.assert_array_equal(before, after)


def test_a_bad_step_leaves_every_bit_of_the_moments_and_counts_on():
    def update(state, value, loss):
        grads = {"w": jnp.full(2, value)}
        return guard.update(OPTIMIZER, grads, state, PARAMS, loss, jnp.float32(1), jnp.uint32(7), jnp.bool_(True), STOP)[
            1
        ].optimizer

    before = guard.init(OPTIMIZER, PARAMS)
    before = before._replace(optimizer=update(before, 0.3, jnp.float32(2)))
    after = update(before, math.nan, jnp.float32(math.nan))
    for old, new in zip(jax.tree.leaves(before.optimizer), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new, old + 1 if jnp.issubdtype(old.dtype, jnp.integer) else old)


def test_without_bad_steps_it_is_the_optimizer_itself():
    _, history = go([2.0] * 5)
    settings = OptimizerConfig()
    adam = optax.adam(0.1, settings.b1, settings.b2, settings.eps)
    params, state = PARAMS, adam.init(PARAMS)
    for expected in history:
        updates, state = adam.update({"w": jnp.full(2, 0.5)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params["w"], expected)


def test_a_jump_is_told_after_enough_steps_of_the_same_stage():
    config = GuardConfig("skip", spike=1.0)
    calm = [2.0] * guard.ENOUGH
    assert go([*calm, 2.9, 3.2, 2.0], config)[0] == [False] * (guard.ENOUGH + 1) + [True, False]
    assert not any(go([2.0, 9.0, 2.0], config)[0]), "too early to tell"
    assert not any(go([*calm, 6.0], config, stages=[1] * guard.ENOUGH + [2])[0]), "another stage has other losses"
    assert not any(go([*calm, 6.0])[0]), "nobody asked"


def poisoned(monkeypatch, *when: int):
    """Make the tokens of some batches so absurd that their loss is not finite: ids beyond the embeddings."""
    original = Batches.__getitem__

    def get(self, step):
        batch = original(self, step)
        return {**batch, "tokens": batch["tokens"] + 10**6 * (step in when)}

    monkeypatch.setattr(Batches, "__getitem__", get)


@pytest.mark.long
def test_skip_goes_on_with_the_next_batch(experiment, monkeypatch):
    poisoned(monkeypatch, 4)
    config = dataclasses.replace(experiment("skip"), guard=GuardConfig("skip"))
    assert train(config).steps == 8
    rows = {row["step"]: row for row in read(config.run_folder) if "loss" in row}
    assert [step for step, row in rows.items() if row.get("bad")] == [5]
    assert rows[5]["loss"] is None
    assert math.isfinite(rows[8]["loss"])


def test_rollback_goes_on_from_the_checkpoint_with_the_batches_behind_the_bad_one(experiment, monkeypatch):
    poisoned(monkeypatch, 4)
    config = dataclasses.replace(experiment("rollback"), guard=GuardConfig("rollback"))
    assert train(config).steps == 8
    rows = [row for row in read(config.run_folder) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9)), "what was rolled back is not in the log"
    before = dataclasses.replace(config, guard=GuardConfig("skip"))
    shutil.rmtree(config.run_folder / "checkpoints" / "8")
    assert train(before).steps == 8, "the batches that another action wants go on too"
    assert not any(row.get("bad") for row in rows)
    # Steps 4 to 8 read batches 5 to 9 (from 0), those behind the bad one.
    assert rows[-1]["time/repeated"] > 0


@pytest.mark.long
def test_rollbacks_are_counted_by_checkpoint_and_batches_never_run_out(experiment, monkeypatch):
    poisoned(monkeypatch, 2, 5, 9, 11)
    config = dataclasses.replace(experiment("often", save_every=1), guard=GuardConfig("rollback", limit=1))
    assert train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=4))).steps == 4
    assert train(config).steps == 8
    rows = [row for row in read(config.run_folder) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert not any(row.get("bad") for row in rows)


@pytest.mark.long
def test_too_many_bad_steps_end_the_run_all_the_same(experiment, monkeypatch):
    poisoned(monkeypatch, *range(4, 100))
    config = dataclasses.replace(experiment("bad"), guard=GuardConfig("skip", limit=2))
    with pytest.raises(UserError, match=r"it is bad step 3 in a row, more than guard.limit 2"):
        train(config)
    config = dataclasses.replace(experiment("bad2"), guard=GuardConfig("rollback", limit=2))
    with pytest.raises(UserError, match=r"2 rollbacks to step 3 did not help"):
        train(config)


def test_a_bad_step_costs_no_second_program():
    step = jax.jit(
        lambda g, s, p, loss: guard.update(
            OPTIMIZER, g, s, p, loss, loss, jnp.uint32(1), loss == loss, GuardConfig("skip", 1.0)
        )
    )
    state = guard.init(OPTIMIZER, PARAMS)
    for loss in (1.0, math.nan, 2.0):
        _, state, _ = step(PARAMS, state, PARAMS, jnp.float32(loss))
    assert step._cache_size() == 1
