"""Combinators and the trials they make: how many, how they are called, and what cannot be."""

import itertools

import pytest

from a3jax.config import Stage
from a3jax.curriculum.presets import paper
from a3jax.errors import UserError
from a3jax.sweep import Trials, chain, log_uniform, product, sample, seeds, uniform, zip_
from a3jax.sweep.trials import make_sweep, read_sweep, save_sweep

RATES = {"optimizer.peak_lr": [1e-4, 3e-4, 1e-3]}


def values(trials: Trials) -> list[dict]:
    return [{path: value.value for path, value in changes.items()} for changes in trials.changes]


def names(experiment, trials, tmp_path) -> list[str]:
    return [trial.name for trial in make_sweep(experiment, trials, tmp_path).trials]


def test_a_product_has_every_combination():
    found = values(product(RATES, {"data.batch": [2, 4]}, seeds(2)))
    assert found == [
        {"optimizer.peak_lr": rate, "data.batch": batch, "seed": seed}
        for rate, batch, seed in itertools.product([1e-4, 3e-4, 1e-3], [2, 4], [0, 1])
    ]


def test_zip_goes_through_all_factors_at_once():
    assert values(zip_({"data.batch": [2, 4], "data.length": [64, 32]}, seeds(2))) == [
        {"data.batch": 2, "data.length": 64, "seed": 0},
        {"data.batch": 4, "data.length": 32, "seed": 1},
    ]
    with pytest.raises(UserError, match="factors of 3, 2 trials"):
        zip_(RATES, seeds(2))


def test_a_chain_has_one_part_after_the_other():
    assert values(chain(RATES, seeds(2))) == [*values(product(RATES)), {"seed": 0}, {"seed": 1}]


def test_samples_stay_when_there_are_more_of_them_or_of_their_fields():
    fields = {"optimizer.peak_lr": log_uniform(1e-5, 1e-2), "data.batch": [2, 4, 8]}
    few, many = values(sample(5, fields)), values(sample(50, {**fields, "optimizer.weight_decay": uniform(0, 0.1)}))
    assert few == [{path: one[path] for path in fields} for one in many[:5]]
    assert values(sample(5, fields, seed=1)) != few
    rates = [one["optimizer.peak_lr"] for one in many]
    assert all(1e-5 <= rate <= 1e-2 and len(f"{rate:e}".split("e")[0].rstrip("0")) <= 4 for rate in rates)
    assert 10 < sum(rate < 3e-4 for rate in rates) < 40  # half of the octaves
    assert {one["data.batch"] for one in many} == {2, 4, 8}
    assert all(0 <= one["optimizer.weight_decay"] <= 0.1 for one in many)


def test_a_field_that_two_factors_change_is_an_error():
    with pytest.raises(UserError, match="seed is changed twice"):
        product(seeds(2), seeds(3))


def test_names_say_what_changes_whatever_the_order_and_the_others(experiment, tmp_path):
    found = names(experiment, product(RATES, seeds(2)), tmp_path)
    assert found[0] == "optimizer.peak_lr=0.0001,seed=0"
    assert len(set(found)) == 6
    again = names(experiment, product(seeds(5), {"optimizer.peak_lr": [3e-4, 1e-4, 1e-3]}), tmp_path)
    assert set(found) < set(again)
    assert names(experiment, product(), tmp_path) == ["baseline"]
    assert names(experiment, product({"optimizer.clip": [2]}), tmp_path) == ["optimizer.clip=2"]
    assert names(experiment, product({"optimizer.clip": [2.0]}), tmp_path) == ["optimizer.clip=2"]
    assert names(experiment, product({"data.path": ["a/b c"]}), tmp_path) == ["data.path=a_b_c"]


def test_a_name_is_a_file_name_however_much_is_changed(experiment, tmp_path):
    long = product({"data.path": ["x" * 300, "x" * 299 + "y", "\u6587" * 90]})
    found = names(experiment, long, tmp_path)
    assert len(set(found)) == 3
    assert max(len(name.encode()) for name in found) < 230


def test_a_trial_has_no_end_of_its_own(experiment, tmp_path):
    with pytest.raises(UserError, match=r"train.stop_at is 3 in seed=1,.*; leave it out"):
        make_sweep(experiment, product({"seed": [1], "train.stop_at": {"": 3}}), tmp_path)


def test_a_trial_that_comes_twice_is_run_once(experiment, tmp_path):
    assert len(names(experiment, chain(RATES, {"optimizer.peak_lr": [3e-4, 1e-2]}), tmp_path)) == 4


def test_trials_are_the_experiment_with_their_changes(experiment, tmp_path):
    stages = {"paper": paper(60, 0.5), "one": (Stage(9, "spans", 2),)}
    trials = product({"curriculum.0.steps": [7], "curriculum": stages, "seed": [5]})
    sweep = make_sweep(experiment, trials, tmp_path / "sweep")
    first, second = (trial.config for trial in sweep.trials)
    assert sweep.trials[0].name == "curriculum=paper,curriculum.0.steps=7,seed=5"
    assert sweep.trials[0].setting == "curriculum=paper,curriculum.0.steps=7"
    assert first.curriculum == (Stage(7, "in_order", 1), *paper(60, 0.5)[1:])
    assert second.curriculum == (Stage(7, "spans", 2),)
    assert first.seed == second.seed == 5
    assert first.run_folder == tmp_path / "sweep" / "runs" / sweep.trials[0].name
    assert (first.data, first.optimizer, first.model) == (experiment.data, experiment.optimizer, experiment.model)
    save_sweep(sweep, tmp_path / "sweep")
    assert read_sweep(tmp_path / "sweep") == sweep


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer.peek_lr": [1]}, "'optimizer.peek_lr', which .* did you mean 'optimizer.peak_lr'?"),
        ({"optimiser": {"x": 1}}, "'optimiser', which .* did you mean 'optimizer'?"),
        ({"curriculum.2.steps": [1]}, "'curriculum.2.steps', which"),
        ({"seed.x": [1]}, "'seed.x', which"),
        ({"optimizer.peak_lr": ["high"]}, "trial optimizer.peak_lr=high: optimizer: peak_lr is 'high'; expected float"),
        ({"data.batch": [2.5]}, "trial data.batch=2.5: data: batch is 2.5; expected int"),
        ({"data.batch": [0]}, "trial data.batch=0: data.batch is 0; it must be at least 1"),
        ({"name": ["x"]}, "trial name=x: name cannot vary"),
        ({"seed": []}, "the sweep has no trials"),
        ({"seed": {"a": 1, "b": 1}, "data.path": ["/", "?"]}, "two trials are named data.path=_,seed=a"),
    ],
)
def test_a_wrong_field_or_value_is_named(fields, message, experiment, tmp_path):
    with pytest.raises(UserError, match=message):
        make_sweep(experiment, product(fields), tmp_path)


def test_a_value_that_has_no_name_of_its_own_needs_a_label():
    with pytest.raises(UserError, match=r"curriculum takes a tuple, which needs a label: {.curriculum.: {LABEL: VALUE"):
        product({"curriculum": [paper(60)]})
