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

The plan, as `python experiments/duel.py` prints it: 2.1e15 FLOPs for the base, 1.3e15 for the search and 4.6e15 for each seed
of the duel, which is for a GPU. experiments/duel_small.py is the same in a size for two cores.
"""

import dataclasses
import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3jax.config import AdaptConfig, Config, DataConfig, FimConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import direct, paper
from a3jax.sweep import Trials, chain, product
from a3jax.train import flops

SEEDS = 3

Arm = dict[str, Any]
Curriculum = Callable[[int], tuple[Stage, ...]]


def left_to_right(steps: int) -> tuple[Stage, ...]:
    """What objectives without orders take."""
    return (Stage(steps),)


def arms(width: int) -> dict[str, tuple[Curriculum, Arm]]:
    """Each with its curriculum over so many steps and what else it changes. Adapters are named by their rank to the width."""
    return {
        "direct": (direct, {}),
        "paper, successor seeds": (paper, {}),
        "diffusion": (left_to_right, {"objective": "diffusion"}),
        "adapters 1 to 2": (direct, {"adapt.rank": width // 2}),
        "fim": (left_to_right, {"objective": "fim", "fim.tokens": FimConfig(tokens=(2, 3, 4)).tokens}),
        "block diffusion 4": (left_to_right, {"objective": "block_diffusion"}),
        "ar": (left_to_right, {"objective": "ar"}),
        "paper, learned seeds": (paper, {"seeding": "learned"}),
        "adapters 1 to 8": (direct, {"adapt.rank": width // 8}),
        "adapters 1 to 32": (direct, {"adapt.rank": width // 32}),
    }


@dataclass(frozen=True)
class Duel:
    """All arms from one base."""

    name: str
    base: ModelConfig
    """The shape of runs/NAME_base."""
    tokens: int
    """That the base was pretrained on, in windows of `length` tokens."""
    length: int
    batch: int
    """Windows of a step."""
    train: TrainConfig

    @property
    def kept(self) -> Path:
        """Where `benchmarks/duel_figures.py` keeps what it found."""
        return Path(__file__).with_name("results") / self.name

    @property
    def arms(self) -> dict[str, tuple[Curriculum, Arm]]:
        """By name."""
        return arms(self.base.width)

    @property
    def pretrained(self) -> float:
        """FLOPs of the base."""
        return self.tokens / self.length * flops.per_window(self.base, Stage(1), self.length)

    @property
    def budgets(self) -> dict[str, float]:
        """FLOPs to adapt with, by name."""
        return {"2%": 0.02 * self.pretrained, "20%": 0.2 * self.pretrained}

    def chosen(self) -> dict[str, float]:
        """The learning rate of each arm, by dev files; none before the search is done."""
        file = self.kept / "rates.json"
        return {arm: found["chosen"] for arm, found in json.loads(file.read_text()).items()} if file.is_file() else {}

    def experiment(self) -> Config:
        """All weights in random groups of 4."""
        return Config(
            name=self.name,
            source=f"runs/{self.name}_base",
            data=DataConfig(path="data/duel/train", length=self.length, batch=self.batch),
            curriculum=direct(self.steps("direct", "2%")),
            adapt=AdaptConfig(rank=0),
            optimizer=OptimizerConfig(warmup=20),
            train=self.train,
        )

    def rates(self, arm: str) -> list[float]:
        """Those that an arm is tried with; adapters stand higher ones (docs/study.md)."""
        return [1e-3, 3e-3, 1e-2] if "adapt.rank" in self.arms[arm][1] else [3e-4, 1e-3, 3e-3]

    def steps(self, arm: str, budget: str) -> int:
        """The most steps of an arm's curriculum that a budget pays for."""
        curriculum, changes = self.arms[arm]
        rank = changes.get("adapt.rank", 0)
        model = dataclasses.replace(self.base, adapter_rank=rank, seeding=changes.get("seeding", "successor"))
        block = {"diffusion": 0, "block_diffusion": 4}.get(str(changes.get("objective")))

        def cost(count: int) -> float:
            stages = curriculum(count)
            each = (stage.length * flops.per_window(model, stage, self.length, mask_block=block) for stage in stages)
            return self.batch * sum(each)

        low, high = 1, int(self.budgets[budget] / cost(1000) * 4000)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle) <= self.budgets[budget] else (low, middle - 1)
        return low

    def trials(self, arm: str, budget: str, rates: list[float], seed: int) -> Trials:
        """An arm at a budget, at each of the rates."""
        curriculum, changes = self.arms[arm]
        stages = {f"{arm}, {budget}": curriculum(self.steps(arm, budget))}
        fixed = {path: {str(value): value} for path, value in changes.items()}
        return product({"curriculum": stages}, fixed, {"optimizer.peak_lr": rates}, {"seed": [seed]})

    def sweep(self) -> Trials:
        """The search for learning rates and, once these are chosen, the duel itself."""
        search = [self.trials(arm, "2%", self.rates(arm), 0) for arm in self.arms]
        best = self.chosen()
        settings = [(arm, budget) for budget in self.budgets for arm in self.arms if arm in best]
        duel = [self.trials(arm, budget, [best[arm]], seed) for seed in range(SEEDS) for arm, budget in settings]
        return chain(*search, *duel)

    def describe(self) -> None:
        """Print what it costs."""
        search = sum(len(self.rates(arm)) for arm in self.arms) * self.budgets["2%"]
        seed = len(self.arms) * sum(self.budgets.values())
        print(f"base {self.pretrained:.2e} FLOPs, search {search:.2e}, each seed of the duel {seed:.2e}")
        for budget, total in self.budgets.items():
            for arm in self.arms:
                steps, tokens = self.steps(arm, budget), self.batch * self.length
                print(f"{budget:>4} {arm:24} {steps:6} steps of {tokens} tokens, {total:.2e} FLOPs")


_BASE = runpy.run_path(str(Path(__file__).with_name("duel_base.py")))
DUEL = Duel(
    name="duel",
    base=_BASE["MODEL"],
    tokens=_BASE["TOKENS"],
    length=_BASE["LENGTH"],
    batch=16,
    train=TrainConfig(remat="none", eval_every=100_000, save_every=2_000, eval_windows=16),
)
experiment, sweep = DUEL.experiment, DUEL.sweep

if __name__ == "__main__":
    DUEL.describe()
