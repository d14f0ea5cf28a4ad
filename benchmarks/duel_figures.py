"""What a duel (experiments/duel.py) came to: the learning rates by dev files, and figures of files of unseen packages.

python benchmarks/duel_figures.py rates                      # after the search: experiments/results/duel/rates.json
python benchmarks/duel_figures.py figures                    # of all runs that are done: figures.json there
python benchmarks/duel_figures.py figures --judge CHECKPOINT # what they write, judged by another model, too
python benchmarks/duel_figures.py rates --duel duel_small    # of experiments/duel_small.py
python benchmarks/duel_tables.py                             # these, as the tables of docs/duel.md

The same command goes on where it was stopped, and takes in what runs have come to an end since. Items are files, one excerpt
and one line of each. Intervals are those of 95% of a bootstrap over files, the same ones for all models, so that differences
are paired.
"""

import dataclasses
import json
import random
import runpy
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from common import run as command
from duel_lines import TRUTH, Lines, ways
from tyro.conf import Positional

from a3jax.decode.settings import Decoding
from a3jax.evaluate.by_order import BOUND, SUMMARY, ByOrder
from a3jax.evaluate.judged import Judged
from a3jax.evaluate.results import PERPLEXITY
from a3jax.evaluate.task import Rows, Task, run
from a3jax.evaluate.texts import Text
from a3jax.files.folders import write_whole
from a3jax.sweep.trials import RUNS, reached, read_sweep
from a3jax.weights.identity import identity
from a3jax.weights.loading import Model, load

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BASE = runpy.run_path(str(EXPERIMENTS / "duel_base.py"))
EXCERPT, CONTEXT = 700, BASE["LENGTH"]
"""Characters of a file that are read, and tokens of a window."""
FILES = {"dev": 40, "test": 100}
LINES = {"dev": 32, "test": 100}
PROMPTS, PROMPT, NEW = 32, 64, 64
"""Of what is judged, in tokens."""
BATCH, DRAWS = 8, 2000
"""Of the bootstrap."""
COLUMNS = ("exact", "ROUGE-L", "parses")
"""Of lines, those in which a setting is compared by its best decoder."""
REFERENCE = "direct"
"""The arm from which others differ."""
ORDERS = ("ar", "in_order_4", "random_1", "random_4", "infill_1")
CHOSEN_BY = {"a3": "random_1", "diffusion": BOUND, "block_diffusion": BOUND, "ar": "ar"}
"""The order whose nats on dev files choose a learning rate; for `fim` it is those of lines in the middle."""


@dataclass(frozen=True)
class Options:
    """Measure the runs of the duel.

    python benchmarks/duel_figures.py figures
    """

    what: Positional[Literal["rates", "figures"]]
    """The learning rates, or the figures of what is done."""
    duel: str = "duel"
    """Which one, by its file in experiments/."""
    out: Path = Path("results")
    """Folder of the results item by item, in one of the duel's name."""
    lines: tuple[str, ...] = ("20%",)
    """Budgets whose runs fill in lines."""
    line_seeds: int = 1
    """Of so many seeds, from 0 on; lines take longer than all else."""
    judge: Path | None = None
    """Checkpoint that judges what is written; without it nothing is written."""

    @property
    def sweep(self) -> Path:
        """Folder of the arms."""
        return Path("sweeps") / self.duel

    @property
    def base(self) -> Path:
        """Folder of the base."""
        return Path("runs") / f"{self.duel}_base"


class Run(NamedTuple):
    """A run of the sweep that is done."""

    arm: str
    budget: str
    rate: float
    seed: int
    steps: int
    path: Path


Shares = dict[str, dict[str, tuple[float, float]]]
"""Figure -> file -> what it adds to numerator and denominator."""


def main(options: Options) -> None:
    """One of the commands."""
    duel = runpy.run_path(str(EXPERIMENTS / f"{options.duel}.py"))["DUEL"]
    found = rates(options, duel.rates) if options.what == "rates" else figures(options, duel.chosen())
    write_whole(duel.kept / f"{options.what}.json", json.dumps(found, indent=1) + "\n")


def done(folder: Path) -> list[Run]:
    """The runs of the sweep in `folder` that have come to their end."""
    found = []
    for trial in read_sweep(folder).trials:
        path, (arm, _, budget) = folder / RUNS / trial.name, trial.labels["curriculum"].rpartition(", ")
        if reached(path) >= trial.config.steps:
            rate = trial.config.optimizer.peak_lr or 0.0
            found.append(Run(arm, budget, rate, trial.config.seed, trial.config.steps, path))
    return found


def files(split: str) -> list[Text]:
    """All files of the packages of a split, in an order drawn once."""
    texts = {name: path.read_text("utf-8", errors="replace").replace("\r\n", "\n") for name, path in BASE["files"](split)}
    found = [Text(name, text.rstrip("\n") + "\n") for name, text in texts.items()]
    random.Random(0).shuffle(found)
    return found


def excerpts(split: str, count: int) -> list[Text]:
    """So many files of a split, of each some lines from a place drawn by its name."""
    found: list[Text] = []
    for file in files(split):
        if len(file.text) > EXCERPT and len(found) < count:
            begin = random.Random(file.id).randrange(len(file.text) - EXCERPT)
            begin = file.text.rfind("\n", 0, begin) + 1
            found.append(Text(file.id, file.text[begin : begin + EXCERPT]))
    return found


def likelihood(model: Model, split: str, orders: Sequence[str]) -> Task:
    """Nats of excerpts by order."""
    texts = excerpts(split, FILES[split])
    return ByOrder(model, f"{split} packages", texts, Counter(), orders, CONTEXT, 10**6)


def lines(model: Model, split: str) -> Task:
    """Lines in every way of the model."""
    return Lines(model, ways(model), f"{split} packages", files(split), LINES[split])


def orders_of(model: Model) -> tuple[str, ...]:
    """Those that a model has a likelihood or a bound in."""
    return ("ar", BOUND) if model.record.mask_block is not None else ORDERS


def by_file(rows: Rows) -> Shares:
    """What every file adds to every figure, over its items; a figure is named by its table, row and column."""
    found: Shares = defaultdict(lambda: defaultdict(lambda: (0.0, 0.0)))
    for row in rows:
        file = row["id"].partition("#")[0]
        for table, each in row["figures"].items():
            for name, columns in each.items():
                for column, (above, below) in columns.items():
                    before = found[f"{table}/{name}/{column}"][file]
                    found[f"{table}/{name}/{column}"][file] = before[0] + above, before[1] + below
    return {name: dict(shares) for name, shares in found.items()}


def mean(shares: dict[str, tuple[float, float]]) -> float:
    """The figure itself."""
    return sum(above for above, _ in shares.values()) / sum(below for _, below in shares.values())


def measured(options: Options, name: str, model: Model, tasks: Iterable[Task], **others: Model) -> Shares:
    """Run tasks, or read what they came to before."""
    models = {role: identity(each) for role, each in {"model": model, **others}.items()}
    found: Shares = {}
    for task in tasks:
        found |= by_file(run(task, models, options.out / options.duel / name, BATCH))
    return found


def rates(options: Options, tried: Callable[[str], list[float]]) -> dict[str, Any]:
    """Of every arm that was searched completely: nats by learning rate, and the rate with the fewest."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for one in done(options.sweep):
        if one.budget == "2%" and one.seed == 0 and one.rate in tried(one.arm):
            model = load(one.path)
            objective = model.record.objective
            name = f"dev/{one.path.name}"
            if objective == "fim":
                own = measured(options, name, model, [lines(model, "dev")])
                nats = mean(own[f"{TRUTH}/middle last/nats per token"])
            else:
                order = CHOSEN_BY[objective]
                nats = mean(
                    measured(options, name, model, [likelihood(model, "dev", (order,))])[f"{SUMMARY}/{order}/nats per token"]
                )
            found[one.arm][repr(one.rate)] = nats
    return {
        arm: {"chosen": float(min(each, key=lambda rate: each[rate])), "nats": each}
        for arm, each in found.items()
        if len(each) == len(tried(arm))
    }


def figures(options: Options, chosen: dict[str, float]) -> dict[str, Any]:
    """Of the base and of every arm at every budget, at its chosen learning rate, over its seeds."""
    settings: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for one in done(options.sweep):
        if chosen.get(one.arm) == one.rate:
            settings[one.arm, one.budget].append(one)
    base = load(options.base)
    shares = {("base", ""): [on_test(options, "base", base, True)]}
    for (arm, budget), each in settings.items():
        shares[arm, budget] = [
            on_test(options, one.path.name, load(one.path), budget in options.lines and one.seed < options.line_seeds)
            for one in each
        ]
    best = {setting: best_decoder(each) for setting, each in shares.items()}
    for setting, each in shares.items():
        for one in each:
            names = {column: f"lines/{best[setting]}/{column}" for column in COLUMNS}
            one |= {f"best/{column}": one[name] for column, name in names.items() if name in one}
    found = {}
    for (arm, budget), each in shares.items():
        runs = settings.get((arm, budget), [])
        facts = {"rate": runs[0].rate, "steps": runs[0].steps, "seeds": [one.seed for one in runs]} if runs else {}
        own = figures_of(each, shares.get((REFERENCE, budget)), shares["base", ""][0])
        found[f"{arm}, {budget}" if budget else arm] = {**facts, "decoder": best[arm, budget], "figures": own}
    return found


def best_decoder(seeds: list[Shares]) -> str | None:
    """Of most exact lines on dev files; of equal ones that of larger ROUGE-L there. None where no lines were filled in."""

    def on_dev(name: str, column: str) -> float:
        figure = f"dev lines/{name}/{column}"
        return _value(_sums([each[figure] for each in seeds if figure in each]), column)

    names = [name.split("/")[1] for name in seeds[0] if name.startswith("dev lines/") and name.endswith("/exact")]
    return max(names, key=lambda name: (on_dev(name, "exact"), on_dev(name, "ROUGE-L")), default=None)


def on_test(options: Options, name: str, model: Model, with_lines: bool) -> Shares:
    """All that is measured of a model on test files; how its decoders do on dev files chooses the best of them."""
    found = measured(options, f"test/{name}", model, [likelihood(model, "test", orders_of(model))])
    if with_lines:
        found |= measured(options, f"test/{name}", model, [lines(model, "test")])
        on_dev = measured(options, f"dev/{name}", model, [lines(model, "dev")])
        found |= {f"dev {figure}": each for figure, each in on_dev.items() if figure.endswith(("/exact", "/ROUGE-L"))}
    if model.record.mask_block in (None, 0):
        order = BOUND if model.record.mask_block == 0 else "random_1"
        found["any order"] = found[f"{SUMMARY}/{order}/nats per token"]
    if with_lines and options.judge is not None:
        judge = load(options.judge)
        for way, decoding in writing(model).items():
            task = Judged(
                model, judge, decoding, "test packages", excerpts("test", FILES["test"]), Counter(), PROMPT, NEW, PROMPTS
            )
            task.name = f"continuation by {way}"
            found |= measured(options, f"test/{name}", model, [task], judge=judge)
    return found


def writing(model: Model) -> dict[str, Decoding]:
    """How continuations are drawn: one token a pass, and two."""
    drawn = Decoding(mode="ar", temperature=1.0, heal=False)
    by_two: dict[str, dict[str, Any]] = {
        "a3": {"mode": "dynamic", "threshold": 0.0, "commit": 2},
        "diffusion": {"mode": "diffusion", "steps": NEW // 2},
        "block_diffusion": {"mode": "block_diffusion", "steps": 2},
    }
    found = {"one a pass": drawn}
    if own := by_two.get(model.record.objective):
        found["two a pass"] = dataclasses.replace(drawn, **own)
    return found


def figures_of(seeds: list[Shares], reference: list[Shares] | None, base: Shares) -> dict[str, dict[str, Any]]:
    """Every figure with its interval, its spread over seeds, and what it is above those of the reference and the base."""
    found = {}
    for name in seeds[0]:
        having = [each[name] for each in seeds if name in each]
        own = _sums(having)
        one: dict[str, Any] = {"value": _value(own, name), "interval": _interval(_drawn(own, name))}
        if len(having) > 1:
            one["seed_sd"] = statistics.stdev(mean(each) for each in having)
        for what, others in (("above_reference", reference), ("above_base", [base])):
            if theirs := [each[name] for each in others or () if name in each]:
                other = _sums(theirs)
                above = _value(own, name) - _value(other, name)
                one[what] = {"value": above, "interval": _interval(_drawn(own, name) - _drawn(other, name))}
        found[name] = one
    return found


def _sums(seeds: list[dict[str, tuple[float, float]]]) -> np.ndarray:
    """Numerators and denominators of all files over all seeds, 2 x files."""
    names = sorted(seeds[0])
    return np.array([[sum(each[name][part] for each in seeds) for name in names] for part in (0, 1)])


def _value(sums: np.ndarray, name: str) -> float:
    ratio = float(sums[0].sum() / sums[1].sum())
    return float(np.exp(ratio)) if name.endswith(PERPLEXITY) else ratio


def _drawn(sums: np.ndarray, name: str) -> np.ndarray:
    """The figure in draws of as many files, with replacement; the same ones for everything that has as many."""
    count = sums.shape[1]
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
    above, below = weights @ sums.T[:, 0], weights @ sums.T[:, 1]
    ratio = above / below
    return np.exp(ratio) if name.endswith(PERPLEXITY) else ratio


def _interval(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.quantile(values, [0.025, 0.975])]


if __name__ == "__main__":
    command(main, Options)
