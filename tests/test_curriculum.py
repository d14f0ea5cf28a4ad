"""Which stage trains which step, on both sides of every boundary."""

import itertools

import pytest

from a3jax.config import Stage
from a3jax.curriculum import paper, stage_at

STAGES = (Stage(3), Stage(1, "in_order", 2), Stage(5, "random", 4), Stage(2, "spans", 8))


def test_every_step_belongs_to_its_stage():
    expected = list(itertools.chain.from_iterable([i] * stage.steps for i, stage in enumerate(STAGES)))
    for step, index in enumerate(expected):
        assert stage_at(STAGES, step) == (index, STAGES[index])


@pytest.mark.parametrize(("boundary", "index"), [(3, 0), (4, 1), (9, 2)])
def test_a_stage_ends_one_step_before_the_next_begins(boundary, index):
    assert stage_at(STAGES, boundary - 1)[0] == index
    assert stage_at(STAGES, boundary)[0] == index + 1


def test_the_end_of_the_curriculum():
    assert stage_at(STAGES, 10)[0] == 3
    for step in (11, 12, 1000):
        with pytest.raises(IndexError, match=f"step {step} is past the end of a curriculum of 11 steps"):
            stage_at(STAGES, step)


def test_stages_with_equal_settings_are_told_apart_by_place():
    twice = (Stage(2), Stage(2))
    assert [stage_at(twice, step)[0] for step in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("steps", [5, 6, 100, 1000, 1001])
def test_the_paper_goes_from_in_order_groups_of_one_to_random_groups_of_eight(steps):
    stages = paper(steps, given=0.25)
    assert [stage.name for stage in stages] == ["in_order_1", "in_order_2", "in_order_4", "random_4", "random_8"]
    assert [stage.given for stage in stages] == [0, 0, 0, 0.25, 0.25]
    assert sum(stage.steps for stage in stages) == steps
    assert len({stage.steps for stage in stages[:4]}) == 1
    assert stages[4].steps >= stages[0].steps >= 1
