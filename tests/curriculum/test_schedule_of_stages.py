"""Which stage trains which step, on both sides of every boundary."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from a3jax.config import Config, DataConfig, Stage, settled
from a3jax.curriculum.plateau import PlateauState, judge
from a3jax.curriculum.presets import direct, half_random, mixed, paper
from a3jax.curriculum.schedule import Schedule, settle
from a3jax.curriculum.stage import AR, Part, Plateau
from a3jax.errors import UserError
from a3jax.files.strict import from_json, to_json

STAGES = (Stage(3), Stage(1, "in_order", 2), Stage(5, "random", 4), Stage(2, "spans", 8))


def test_every_step_belongs_to_its_stage():
    expected = list(itertools.chain.from_iterable([i] * stage.steps for i, stage in enumerate(STAGES)))
    for step, index in enumerate(expected):
        assert Schedule(STAGES, 4).at(step) == (index, STAGES[index])


@pytest.mark.parametrize(("boundary", "index"), [(3, 0), (4, 1), (9, 2)])
def test_a_stage_ends_one_step_before_the_next_begins(boundary, index):
    assert Schedule(STAGES, 4).at(boundary - 1)[0] == index
    assert Schedule(STAGES, 4).at(boundary)[0] == index + 1


def test_the_end_of_the_curriculum():
    assert Schedule(STAGES, 4).at(10)[0] == 3
    for step in (11, 12, 1000):
        with pytest.raises(IndexError, match=f"step {step} is past the end of a curriculum of 11 steps"):
            Schedule(STAGES, 4).at(step)


def test_a_stage_of_no_steps_is_passed_over():
    stages = (Stage(2), Stage(0, "random", 4), Stage(1, "in_order", 2))
    assert [Schedule(stages, 4).at(step)[0] for step in range(3)] == [0, 0, 2]
    ramped = settle((Stage(2), Stage(0, "random", 4), Stage(3, "in_order", 2, ramp=2)), 1, 1)
    assert [part.name for part in ramped[2].parts] == ["in_order_2", "in_order_1"], "the ramp is from what was trained"


def test_stages_with_equal_settings_are_told_apart_by_place():
    twice = (Stage(2), Stage(2))
    assert [Schedule(twice, 4).at(step)[0] for step in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("steps", [5, 6, 100, 1000, 1001])
def test_the_paper_goes_from_in_order_groups_of_one_to_random_groups_of_eight(steps):
    stages = paper(steps, given=0.25)
    assert [stage.name for stage in stages] == ["in_order_1", "in_order_2", "in_order_4", "random_4", "random_8"]
    assert [stage.given for stage in stages] == [0, 0, 0, 0.25, 0.25]
    assert sum(stage.steps for stage in stages) == steps
    assert len({stage.steps for stage in stages[:4]}) == 1
    assert stages[4].steps >= stages[0].steps >= 1


def test_our_own_are_random_groups_alone_or_beside_the_order_of_the_source():
    assert settle(direct(12), 4, 100) == (Stage(12, "random", 4),)
    (stage,) = settle(mixed(12), 4, 100)
    assert (stage.length, stage.name) == (12, "random_4+in_order_1")
    assert [part.weight for part in stage.parts] == [0.75, 0.25]
    assert stage.parts[1].is_ar


def test_strategy_five_of_the_authors_is_half_random_groups_and_half_in_order():
    (stage,) = settle(half_random(12), 4, 100)
    assert [(part.family, part.group_size, part.weight) for part in stage.parts] == [("random", 8, 0.5), ("in_order", 8, 0.5)]


def steps_of(*stages, **totals):
    return [stage.length for stage in settle(stages, 4, 100, **totals)]


def test_lengths_in_steps_tokens_and_fractions_are_settled_to_steps():
    assert steps_of(Stage(7), Stage(tokens=4000), Stage(tokens=4001)) == [7, 10, 11]
    assert steps_of(Stage(3, batch=8), Stage(tokens=4000, batch=8)) == [3, 5]
    thirds = [Stage(fraction=1 / 3)] * 3
    assert steps_of(*thirds, total_steps=100) == [33, 34, 33]
    assert steps_of(Stage(10), Stage(fraction=0.25), Stage(fraction=0.75), total_steps=50) == [10, 10, 30]
    assert steps_of(Stage(fraction=0.5), Stage(fraction=0.5, batch=1), total_tokens=40_000) == [50, 200]
    assert steps_of(Stage(10), Stage(fraction=1.0), total_tokens=40_000) == [10, 90]
    assert Schedule(settle((Stage(2), Stage(0), Stage(1, batch=8)), 4, 1), 4).batch_S.tolist() == [4, 4, 8]


HALF = Stage(fraction=0.5, family="random", group_size=4)


@pytest.mark.parametrize(
    ("stages", "totals", "message"),
    [
        ((Stage(1), Stage(None, "random", 4)), {}, "curriculum.1 (random_4): its length is missing; give one of steps"),
        ((Stage(5, tokens=9),), {}, "curriculum.0 (in_order_1): its length is given as steps and tokens; give one"),
        ((Stage(5), HALF), {"total_steps": 9}, "the fractions of curriculum.1 (random_4) add up to 0.5; they must"),
        ((HALF, HALF), {}, "curriculum.0 (random_4) is a fraction; give total-steps or total-tokens"),
        ((Stage(5),), {"total_steps": 5}, "total-steps or total-tokens is given, but no stage is a fraction of it"),
        ((HALF, HALF), {"total_steps": 5, "total_tokens": 9}, "total-steps and total-tokens are both given"),
        ((Stage(9), HALF, HALF), {"total_steps": 5}, "total-steps is 5, but the stages before or between curriculum.1"),
        ((Stage(-1),), {}, "curriculum.0 (in_order_1).steps is -1; it must be at least 0"),
        ((Stage(5, ramp=2),), {}, "curriculum.0 (in_order_1).ramp is 2, but no stage is before it"),
        ((Stage(5), Stage(5, ramp=6)), {}, "curriculum.1 (in_order_1).ramp is 6, more than the stage's 5 steps"),
        ((Stage(5, mixture=(Part(weight_from=0.0), AR)),), {}, "curriculum.0.ramp is 0, but weight-from or size-from"),
        ((Stage(5, "random", mixture=(AR,)),), {}, "curriculum.0 has a mixture, and random_1 of its own too"),
        ((Stage(5, mixture=(Part(0.0), AR, Part(-1.0))),), {}, "curriculum.0.mixture.2.weight is -1.0; it must be"),
        ((Stage(5, mixture=(Part(0.0),)),), {}, "curriculum.0.mixture: weight is 0 in all parts"),
        ((Stage(5, "infill", 4, prefix=0.5),), {}, "curriculum.0.prefix is 0.5, but infill gives the text on both sides"),
        ((Stage(5, prefix=1.0),), {}, "curriculum.0.prefix is 1.0; it must be at least 0 and below 1"),
        ((Stage(5, batch=0),), {}, "curriculum.0.batch is 0; it must be at least 1"),
        ((Stage(5),), {"ar_share": 1.0}, "ar-share is 1.0; it must be at least 0 and below 1"),
        ((Stage(5, plateau=Plateau(evaluations=0)),), {}, "curriculum.0.plateau.evaluations is 0; it must be at least 1"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(stages, totals, message):
    with pytest.raises(UserError) as error:
        settle(stages, 4, 100, **totals)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def shares(stages, step):
    """What is drawn at a step: name -> probability."""
    _, stage = Schedule(stages, 4).at(step)
    weight_P = Schedule(stages, 4).mixture(step).weight_P
    return {part.name: pytest.approx(float(weight / weight_P.sum())) for part, weight in zip(stage.parts, weight_P)}


def test_a_ramp_begins_with_the_stage_before_and_is_over_after_its_steps():
    stages = settle((Stage(3), Stage(6, "random", 4, ramp=4), Stage(2, "random", 8)), 1, 1)
    assert stages[0] == Stage(3), "a stage of one kind stays as it is, and static"
    assert shares(stages, 2) == {"in_order_1": 1}
    assert shares(stages, 3) == {"random_4": 0, "in_order_1": 1}
    assert shares(stages, 4) == {"random_4": 0.25, "in_order_1": 0.75}
    assert shares(stages, 6) == {"random_4": 0.75, "in_order_1": 0.25}
    assert shares(stages, 7) == shares(stages, 8) == {"random_4": 1, "in_order_1": 0}
    assert shares(stages, 9) == {"random_8": 1}
    assert stages[1].name == "random_4"
    assert Schedule(stages, 4).rows(2, 5) == {}
    assert Schedule(stages, 4).rows(4, 5)["weights"].shape == Schedule(stages, 4).rows(4, 5)["sizes"].shape == (5, 2)


def test_a_ramp_of_the_size_changes_nothing_else():
    stages = settle((Stage(1, "random", 1), Stage(9, "random", 9, ramp=8, ramp_of="size")), 1, 1)
    sizes = [Schedule(stages, 4).mixture(step).size_P.tolist() for step in range(1, 10)]
    assert sizes == [[size] for size in range(1, 10)]


def test_an_ar_share_is_kept_at_every_step_of_ramps_and_mixtures():
    own = (Part(3.0, "random", 4), Part(1.0, "spans", 4, weight_from=5.0))
    stages = settle((Stage(2), Stage(6, "random", 4, ramp=4), Stage(5, mixture=own, ramp=2)), 1, 1, ar_share=0.2)
    assert stages[0] == Stage(2)
    assert shares(stages, 2) == {"random_4": 0, "in_order_1": 1}
    assert shares(stages, 4) == {"random_4": 0.4, "in_order_1": 0.6}
    assert shares(stages, 7) == {"random_4": 0.8, "in_order_1": 0.2}
    assert shares(stages, 8) == {"random_4": 0.3, "spans_4": 0.5, "in_order_1": 0.2}
    assert shares(stages, 10) == {"random_4": 0.6, "spans_4": 0.2, "in_order_1": 0.2}


def test_settled_curricula_stay_as_they_are_and_go_through_json():
    stages = (Stage(fraction=0.5), Stage(None, "random", 4, fraction=0.5, ramp=3, plateau=Plateau("ar")))
    config = Config("x", data=DataConfig(batch=4), curriculum=stages, ar_share=0.1, total_steps=20)
    once = settled(config)
    assert settled(once) == once
    assert from_json(Config, to_json(config), "x") == config
    assert from_json(Config, to_json(once), "x") == once
    assert config.steps == once.steps == 20
    assert json.loads(to_json(once))["curriculum"][1]["steps"] == 10


def test_a_plateau_passes_over_what_is_left_of_its_stage_alone():
    rule = Plateau("random_4", delta=0.1, evaluations=2)
    stages = (Stage(10), dataclasses.replace(Stage(50, "random", 4), plateau=rule), Stage(10, "random", 8))

    def go(values, standing=None):
        found = [standing or PlateauState()]
        for step, value in values:
            found.append(judge(found[-1], Schedule(stages, 4), step, {"random_4": value, "ar": 1.0}))
        return found[1:]

    early = [(5, 3.0), (10, 3.0), (15, 3.0)]
    assert [one.skipped for one in go(early)] == [0, 0, 0], "other stages have none; the first evaluation is the best"
    falling = [*early, (20, 2.8), (25, 2.75), (30, 2.6), (35, 2.55), (40, 2.55)]
    found = go(falling)
    assert [one.stale for one in found] == [0, 0, 0, 0, 1, 0, 1, 0]
    assert found[-1].skipped == 20, "step 40 of 60"
    assert Schedule(stages, 4).at(39 + found[-2].skipped)[0] == 1
    assert Schedule(stages, 4).at(40 + found[-1].skipped)[0] == 2
    assert go([(45, 9.0), (50, 9.0)], found[-1])[-1].skipped == 20
    for cut in range(1, len(falling)):  # a resumed run has what was saved, and nothing else
        saved = from_json(PlateauState, to_json(go(falling[:cut])[-1]), "x")
        assert go(falling[cut:], saved)[-1] == found[-1]
    ended = go([(15, 3.0), (20, float("nan")), (25, float("nan"))])[-1]
    assert Schedule(stages, 4).at(25 + ended.skipped)[0] == 2


def test_batches_of_their_own_do_not_go_with_what_moves_stages():
    stages = (Stage(5, plateau=Plateau()), Stage(5, batch=2))
    with pytest.raises(UserError, match="a plateau can bring batches into another stage"):
        Config("x", source="y", data=DataConfig(batch=4), curriculum=stages)
    assert np.array_equal(Schedule(stages, 4).batch_S, [4] * 5 + [2] * 5)
