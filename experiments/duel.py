"""The duel: any-order prediction against masked diffusion, block diffusion, filling in the middle and left to right, all from
the same base and at the same FLOPs.

a3jax sweep run duel --at-once 1         # after the commands of experiments/duel_base.py
a3jax sweep report sweeps/duel --order random_1

Two budgets, 2% and 20% of what the base was pretrained with. Arms differ in what a token costs them, so they take different
numbers of steps: as many as the budget has of useful FLOPs (`a3jax.train.flops`), of full windows of one document each. A
curriculum of several stages keeps its proportions. First every arm is trained at the small budget with each of the `RATES`;
the rate that is best on dev files then goes into `CHOSEN`, and the same command goes on with three seeds of both budgets.

The plan, as `python experiments/duel.py` prints it: 2.2e15 FLOPs for the base, 4.5e13 and 4.5e14 for a run, 1.3e15 for the
search and 1.5e16 for the duel; in all 1.8e16, or 51 hours at 1e11 FLOP/s. Half of that is the price of a base that was
pretrained with half of the tokens (`TOKENS` of duel_base.py).
"""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from a3jax.config import AdaptConfig, Config, DataConfig, FimConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import direct, paper
from a3jax.sweep import Trials, chain, product, seeds
from a3jax.train import flops

_BASE = runpy.run_path(str(Path(__file__).with_name("duel_base.py")))
BASE: ModelConfig = _BASE["MODEL"]
"""The shape of runs/duel_base."""
LENGTH, BATCH = _BASE["LENGTH"], 8
PRETRAINED = _BASE["TOKENS"] / LENGTH * flops.per_window(BASE, Stage(1), LENGTH)
"""FLOPs of the base."""
BUDGETS = {"2%": 0.02 * PRETRAINED, "20%": 0.2 * PRETRAINED}

RATES = [3e-4, 1e-3, 3e-3]
CHOSEN: dict[str, float] = {}
"""The learning rate of each arm, by dev files; none before the search is done."""

Arm = dict[str, Any]
Curriculum = Callable[[int], tuple[Stage, ...]]


def left_to_right(steps: int) -> tuple[Stage, ...]:
    """What objectives without orders take."""
    return (Stage(steps),)


ARMS: dict[str, tuple[Curriculum, Arm]] = {
    "paper, learned seeds": (paper, {"seeding": "learned"}),
    "paper, successor seeds": (paper, {}),
    "direct": (direct, {}),
    "adapters 1 to 32": (direct, {"adapt.rank": 6}),
    "adapters 1 to 8": (direct, {"adapt.rank": 24}),
    "adapters 1 to 2": (direct, {"adapt.rank": 96}),
    "diffusion": (left_to_right, {"objective": "diffusion"}),
    "block diffusion 4": (left_to_right, {"objective": "block_diffusion"}),
    "fim": (left_to_right, {"objective": "fim", "fim.tokens": FimConfig(tokens=(2, 3, 4)).tokens}),
    "ar": (left_to_right, {"objective": "ar"}),
}
"""Each with its curriculum over so many steps, and what else it changes. Adapters are named by their rank to the width."""


def experiment() -> Config:
    """All weights in random groups of 4."""
    return Config(
        name="duel",
        source="runs/duel_base",
        data=DataConfig(path="data/duel/train", length=LENGTH, batch=BATCH),
        curriculum=direct(steps(direct, {}, BUDGETS["2%"])),
        adapt=AdaptConfig(rank=0),
        optimizer=OptimizerConfig(warmup=20),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=500, save_every=500, eval_windows=64),
    )


def steps(curriculum: Curriculum, arm: Arm, budget: float) -> int:
    """The most steps of a curriculum that a budget pays for."""
    rank = arm.get("adapt.rank", 0)
    model = dataclasses.replace(BASE, adapter_rank=rank, seeding=arm.get("seeding", "successor"))
    block = {"diffusion": 0, "block_diffusion": 4}.get(str(arm.get("objective")))

    def cost(count: int) -> float:
        stages = curriculum(count)
        return sum(stage.length * BATCH * flops.per_window(model, stage, LENGTH, mask_block=block) for stage in stages)

    low, high = 1, int(budget / cost(1000) * 4000)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low


def trials(name: str, budget: str, rates: list[float], count: int) -> Trials:
    """An arm at a budget, at each of the rates, with so many seeds."""
    curriculum, arm = ARMS[name]
    stages = curriculum(steps(curriculum, arm, BUDGETS[budget]))
    changes = {path: {str(value): value} for path, value in arm.items()}
    return product({"curriculum": {f"{name}, {budget}": stages}}, changes, {"optimizer.peak_lr": rates}, seeds(count))


def sweep() -> Trials:
    """The search for learning rates and, once these are chosen, the duel itself."""
    search = [trials(name, "2%", RATES, 1) for name in ARMS]
    duel = [trials(name, budget, [CHOSEN[name]], 3) for budget in BUDGETS for name in ARMS if name in CHOSEN]
    return chain(*search, *duel)


if __name__ == "__main__":
    runs = len(ARMS) * (len(RATES) * BUDGETS["2%"] + 3 * sum(BUDGETS.values()))
    print(f"base {PRETRAINED:.2e} FLOPs, search and duel {runs:.2e}")
    for budget, total in BUDGETS.items():
        for name, (curriculum, arm) in ARMS.items():
            print(
                f"{budget:>4} {name:24} {steps(curriculum, arm, total):6} steps of {BATCH * LENGTH} tokens, {total:.2e} FLOPs"
            )
