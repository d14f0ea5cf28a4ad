"""What a plan tells of a whole run: hours between the two ends, and what they cost."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import pytest

from a3jax.config import Config, DataConfig, Stage
from a3jax.plan.compile import Memory
from a3jax.plan.costs import Costs
from a3jax.plan.roofline import roofline
from a3jax.plan.show import show_plan
from a3jax.plan.stages import Plan, StagePlan
from a3jax.plan.topology import Chip, Topology

PEAK = 2307e12 / 2  # of the device kind below
HALF = Chip(hbm_bytes=96 * 2**30, hbm_bytes_per_second=1e12, ici_bytes_per_second=1e11, devices=2)
CHIPS = Topology("two chips", HALF, (SimpleNamespace(device_kind="TPU7x"),) * 4)
COSTS = Costs(int(PEAK), hbm_bytes=10**12, sent_bytes=Counter({"all-gather": 2 * 10**11}))
"""A step of 1 s of arithmetic, 1 s of memory traffic and 2 s of communication."""


@pytest.fixture
def planned(tiny):
    """1,800 steps of 2 to 4 seconds, in two stages."""
    config = Config("test", model=tiny(), data=DataConfig(length=32, batch=8))
    bound = roofline(COSTS, config, config.model, Stage(1), CHIPS)
    stage = StagePlan("one", 600, "one", 1.0, Memory(1, 1, 1, 1), 0, bound)
    stages = (stage, dataclasses.replace(stage, name="two", steps=1200))
    return Plan(CHIPS, {"fsdp": 4}, 10**9, "full", "splash in blocks of 512", stages)


def test_hours_lie_between_perfect_overlap_and_none_and_chips_are_paid_whole(planned, capsys):
    answer = planned.as_dict(price=3)
    assert (answer["devices"], answer["chips"]) == (4, 2)
    assert (answer["seconds"], answer["serial_seconds"]) == pytest.approx((3600, 7200))
    assert (answer["cost"], answer["serial_cost"]) == pytest.approx((6, 12))
    assert (answer["stages"][0]["seconds"], answer["stages"][0]["serial_seconds"]) == pytest.approx((2, 4))
    show_plan(planned, price=3)
    printed = capsys.readouterr().out
    assert "fits; its 1,800 steps take 1 to 2 hours from perfect overlap to none" in printed
    assert "2 chips at 3 an hour: 6 to 12" in printed
    assert "4 devices, fsdp 4, remat full, splash in blocks of 512" in printed


def test_what_does_not_fit_has_no_time_and_no_cost(planned, capsys):
    over = dataclasses.replace(planned, stages=(dataclasses.replace(planned.stages[0], bytes_over=2**30, bound=None),))
    answer = over.as_dict(price=3)
    assert (answer["seconds"], answer["serial_seconds"]) == (None, None)
    assert "cost" not in answer
    show_plan(over, price=3)
    assert "does not fit: a device lacks 1,073,741,824 bytes (1.00 GiB)\n" in capsys.readouterr().out
