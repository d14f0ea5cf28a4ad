"""The bound of a step: what it is made of, on a chip with round numbers."""

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


def bound(tiny, costs, remat="full"):
    config = Config("test", model=tiny(), data=DataConfig(length=32, batch=8), train=TrainConfig(remat=remat))
    return roofline(costs, config, config.model, STAGE, CHIPS), config


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


def test_a_program_that_cannot_be_read_names_the_remedy():
    import jax

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmany lines")

    with pytest.raises(UserError, match=r"cannot read what this libtpu compiles; pip install 'jax\[tpu\]==") as error:
        read_costs(Unreadable())
    assert "\n" not in str(error.value)
