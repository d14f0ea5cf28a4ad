"""The duel: any-order prediction against masked diffusion, block diffusion, filling in the middle and left to right, all from
the same base and at the same FLOPs.

a3jax sweep run duel --at-once 1                   # after the commands of experiments/duel_base.py: the search
python benchmarks/duel_figures.py rates            # on dev files, which learning rate is each arm's
a3jax sweep run duel --at-once 1                   # the same command goes on with the duel
python benchmarks/duel_figures.py figures          # what it came to on test files, at any time
python benchmarks/duel_tables.py                   # the tables of docs/duel.md

Two budgets, 2% and 20% of what the base was pretrained with. Arms differ in what a token costs them, so they take different
numbers of steps: as many as the budget has of useful FLOPs (`a3jax.train.flops`), of full windows of one document each. A
curriculum of several stages keeps its proportions. First every arm is trained at the small budget with each of its `rates`;
then seed 0 of every arm at both budgets, then seed 1, then seed 2, so that the table fills up evenly.

The plan, as `python experiments/duel.py` prints it: 4.2e13 FLOPs for the base, 2.5e13 for the search and 9.3e13 for each seed
of the duel; in all 3.5e14, which is two and a half to five hours at the 2e10 to 4e10 FLOP/s of one core, and some two more
for starting, compiling and measuring. It is this small so that such a core can do it: docs/duel.md.
"""

import dataclasses
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from a3jax.config import AdaptConfig, Config, DataConfig, FimConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import direct, paper
from a3jax.sweep import Trials, chain, product
from a3jax.train import flops

_BASE = runpy.run_path(str(Path(__file__).with_name("duel_base.py")))
BASE: ModelConfig = _BASE["MODEL"]
"""The shape of runs/duel_base."""
LENGTH, BATCH = _BASE["LENGTH"], 16
PRETRAINED = _BASE["TOKENS"] / LENGTH * flops.per_window(BASE, Stage(1), LENGTH)
"""FLOPs of the base."""
BUDGETS = {"2%": 0.02 * PRETRAINED, "20%": 0.2 * PRETRAINED}

SEEDS = 3
FIGURES = Path(__file__).with_name("results") / "duel"
"""What `benchmarks/duel_figures.py` keeps."""


def chosen() -> dict[str, float]:
    """The learning rate of each arm, by dev files; none before the search is done."""
    file = FIGURES / "rates.json"
    return {arm: found["chosen"] for arm, found in json.loads(file.read_text()).items()} if file.is_file() else {}


Arm = dict[str, Any]
Curriculum = Callable[[int], tuple[Stage, ...]]


def left_to_right(steps: int) -> tuple[Stage, ...]:
    """What objectives without orders take."""
    return (Stage(steps),)


ARMS: dict[str, tuple[Curriculum, Arm]] = {
    "direct": (direct, {}),
    "paper, successor seeds": (paper, {}),
    "diffusion": (left_to_right, {"objective": "diffusion"}),
    "adapters 1 to 2": (direct, {"adapt.rank": 96}),
    "fim": (left_to_right, {"objective": "fim", "fim.tokens": FimConfig(tokens=(2, 3, 4)).tokens}),
    "block diffusion 4": (left_to_right, {"objective": "block_diffusion"}),
    "ar": (left_to_right, {"objective": "ar"}),
    "paper, learned seeds": (paper, {"seeding": "learned"}),
    "adapters 1 to 8": (direct, {"adapt.rank": 24}),
    "adapters 1 to 32": (direct, {"adapt.rank": 6}),
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
        train=TrainConfig(remat="none", eval_every=100_000, save_every=2_000, eval_windows=16),
    )


def rates(name: str) -> list[float]:
    """Those that an arm is tried with; adapters stand higher ones (docs/study.md)."""
    return [1e-3, 3e-3, 1e-2] if "adapt.rank" in ARMS[name][1] else [3e-4, 1e-3, 3e-3]


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


def trials(name: str, budget: str, at: list[float], seed: int) -> Trials:
    """An arm at a budget, at each of the rates."""
    curriculum, arm = ARMS[name]
    stages = curriculum(steps(curriculum, arm, BUDGETS[budget]))
    changes = {path: {str(value): value} for path, value in arm.items()}
    return product({"curriculum": {f"{name}, {budget}": stages}}, changes, {"optimizer.peak_lr": at}, {"seed": [seed]})


def sweep() -> Trials:
    """The search for learning rates and, once these are chosen, the duel itself."""
    search = [trials(name, "2%", rates(name), 0) for name in ARMS]
    best = chosen()
    settings = [(name, budget) for budget in BUDGETS for name in ARMS if name in best]
    duel = [trials(name, budget, [best[name]], seed) for seed in range(SEEDS) for name, budget in settings]
    return chain(*search, *duel)


if __name__ == "__main__":
    search, seed = sum(len(rates(name)) for name in ARMS) * BUDGETS["2%"], len(ARMS) * sum(BUDGETS.values())
    print(f"base {PRETRAINED:.2e} FLOPs, search {search:.2e}, each seed of the duel {seed:.2e}")
    for budget, total in BUDGETS.items():
        for name, (curriculum, arm) in ARMS.items():
            count = steps(curriculum, arm, total)
            print(f"{budget:>4} {name:24} {count:6} steps of {BATCH * LENGTH} tokens, {total:.2e} FLOPs")
