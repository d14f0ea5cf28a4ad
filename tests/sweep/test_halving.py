"""Successive halving on runs whose metrics were made up."""

import dataclasses
import json

import pytest

from a3jax.curriculum.plateau import PlateauState
from a3jax.errors import UserError
from a3jax.sweep import product
from a3jax.sweep.halving import best, dropped, stops
from a3jax.sweep.trials import Halving, make_sweep

RULE = Halving(2, "random_1")


@pytest.fixture
def sweep(experiment, tmp_path):
    """Four trials of eight steps."""
    return make_sweep(experiment, product({"optimizer.peak_lr": [1e-4, 1e-3, 1e-2, 1e-1]}), tmp_path, RULE)


@pytest.mark.parametrize(("eta", "trials", "steps"), [(2, 4, [2, 4, 8]), (3, 8, [3, 8]), (3, 9, [1, 3, 8]), (2, 1, [8])])
def test_rungs(eta, trials, steps, experiment, tmp_path):
    sweep = make_sweep(experiment, product({"seed": range(trials)}), tmp_path, Halving(eta, "ar"))
    assert [stops(sweep, trial) for trial in sweep.trials] == [steps] * trials
    alone = make_sweep(experiment, product({"seed": range(trials)}), tmp_path)
    assert stops(alone, alone.trials[0]) == [8]


def test_the_best_at_the_rung_go_on_whatever_came_after_it(sweep, write_run, tmp_path):
    for trial, nll, later in zip(sweep.trials, (3.0, 1.0, 2.0, 4.0), (0.0, 9.0, 9.0, 0.0)):
        write_run(trial, {1: {"nll/random_1": 0.5}, 2: {"nll/random_1": nll, "nll/ar": -nll}, 3: {"nll/random_1": later}})
    assert best(tmp_path, sweep, RULE, 0, sweep.trials) == list(sweep.trials[1:3])
    assert best(tmp_path, sweep, RULE, 1, sweep.trials[1:3]) is None, "they are not there yet"
    assert dropped(tmp_path, sweep) == {sweep.trials[0].name, sweep.trials[3].name}


def test_a_trial_whose_stage_ended_early_is_over(sweep, write_run, tmp_path):
    """It has passed over what the stage had left, and is judged by what it evaluated last."""
    for trial, nll in zip(sweep.trials, (3.0, 1.0, 2.0, 4.0)):
        write_run(trial, {2: {"nll/random_1": nll}} if nll != 1.0 else {1: {"nll/random_1": nll}})
    early = sweep.trials[1].config.run_folder / "checkpoints" / "1" / "standing"
    early.mkdir()
    (early / "metadata").write_text(json.dumps(dataclasses.asdict(PlateauState(skipped=7))))
    assert best(tmp_path, sweep, RULE, 0, sweep.trials) == list(sweep.trials[1:3])


def test_nobody_is_dropped_before_all_are_at_the_rung(sweep, write_run, tmp_path):
    for trial in sweep.trials[:3]:
        write_run(trial, {2: {"nll/random_1": 1.0}})
    assert best(tmp_path, sweep, RULE, 0, sweep.trials) is None
    assert dropped(tmp_path, sweep) == set()
    (tmp_path / "failed" / sweep.trials[3].name).mkdir(parents=True)  # it will never be
    assert dropped(tmp_path, sweep) == {sweep.trials[2].name, sweep.trials[3].name}, "of equals, the first by name"


def test_without_held_out_text_there_is_nothing_to_choose_by(sweep, write_run, tmp_path):
    for trial in sweep.trials:
        write_run(trial, {2: {"loss": 1.0}})
    with pytest.raises(UserError, match="has no held-out NLL at step 2"):
        best(tmp_path, sweep, RULE, 0, sweep.trials)
