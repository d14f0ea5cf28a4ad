"""The bound of a step: what it is made of, on a chip with round numbers."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import pytest

from a3jax.config import Config, DataConfig, Stage, TrainConfig
from a3jax.errors import UserError
from a3jax.plan.costs import Costs
from a3jax.plan.roofline import read_costs, roofline
from a3jax.plan.topology import Chip, Topology
from a3jax.train import flops
from a3jax.train.counts import full_window

PEAK = 197e12  # of the device kind below
CHIP = Chip(hbm_bytes=16 * 2**30, hbm_bytes_per_second=1e12, ici_bytes_per_second=1e11)
CHIPS = Topology("round", CHIP, (SimpleNamespace(device_kind="TPU v5e"),) * 4)
STAGE = Stage(1, "random", 4)


def bound(tiny, costs, remat="full", model=None, stage=STAGE):
    config = Config("test", model=model or tiny(), data=DataConfig(length=32, batch=8), train=TrainConfig(remat=remat))
    return roofline(costs, config, config.model, stage, CHIPS), config


@pytest.mark.parametrize(
    ("flops_done", "hbm", "sent", "slowest", "seconds"),
    [
        (PEAK * 0.5, 10**11, {"all-gather": 10**10}, "compute", 0.5),
        (PEAK * 0.5, 7 * 10**11, {"all-gather": 10**10}, "memory", 0.7),
        (PEAK * 0.5, 10**11, {"all-gather": 5 * 10**10, "all-reduce": 4 * 10**10}, "communication", 0.9),
    ],
)
def test_the_slowest_decides(flops_done, hbm, sent, slowest, seconds, tiny):
    costs = Costs(int(flops_done), hbm, Counter(sent), Counter(dict.fromkeys(sent, 1)))
    found, config = bound(tiny, costs)
    assert (found.bound_by, found.seconds) == (slowest, pytest.approx(seconds))
    useful = 8 * flops.per_window(config.model, STAGE, 32)
    assert found.flops == useful
    assert found.mfu == pytest.approx(useful / (seconds * 4 * PEAK))
    one_after_the_other = flops_done / PEAK + hbm / 1e12 + sum(sent.values()) / 1e11
    assert found.serial_seconds == pytest.approx(one_after_the_other)
    assert found.serial_mfu == pytest.approx(useful / (one_after_the_other * 4 * PEAK))
    assert found.tokens == 8 * 32


@pytest.mark.parametrize(("remat", "passes"), [("none", 3.5), ("dots", 3.5), ("full", 4.5)])
def test_hidden_attention_is_counted_by_hand(remat, passes, tiny):
    """Forward, again where it is rematerialized, and five products of the size of the forward's two."""
    seen, _ = bound(tiny, Costs(matmul_flops=10**9), remat)
    hidden, config = bound(tiny, Costs(matmul_flops=10**9, hidden_matmuls=True), remat)
    attention = 8 * flops.attention_forward(config.model, STAGE, full_window(32))
    assert seen.executed_flops == 4e9
    assert hidden.executed_flops - seen.executed_flops == passes * attention


@pytest.mark.parametrize(("family", "part"), [("in_order", (2 * 9 - 1) * 32 - 9 * 8), ("random", 32 * 32)])
def test_local_layers_skip_where_slots_are_in_order_only(family, part, tiny):
    """Two of three layers see 9 tokens: useful is what they see, executed what kernels go over."""
    local, stage = {"local_layers": (0, 1), "local_window": 9}, Stage(1, family, 4)
    model = dataclasses.replace(tiny(), **local)
    seen, wide = full_window(32, local_window=9), full_window(32)
    own = flops.attention_forward(model, stage, seen)
    assert own == pytest.approx(4 * 4 * 8 * ((4 * ((2 * 9 - 1) * 32 - 9 * 8) + 1 * 32 * 32) / 2))
    assert own < flops.attention_forward(tiny(), stage, wide)
    seen_costs, hidden = (Costs(matmul_flops=10**9, hidden_matmuls=hidden) for hidden in (False, True))
    found = [bound(tiny, costs, "none", model, stage)[0] for costs in (seen_costs, hidden)]
    executed = found[1].executed_flops - found[0].executed_flops
    assert executed == pytest.approx(8 * 3.5 * 4 * 4 * 8 * (4 * part + 32 * 32) / 2)
    assert found[0].flops == 8 * flops.per_window(model, stage, 32)


def test_a_program_that_cannot_be_read_names_the_remedy():
    import jax

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmany lines")

    with pytest.raises(UserError, match=r"cannot read what this libtpu compiles; pip install 'jax\[tpu\]==") as error:
        read_costs(Unreadable())
    assert "\n" not in str(error.value)
