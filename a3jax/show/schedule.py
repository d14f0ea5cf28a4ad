"""A curriculum as people look at it: what every stage draws and for how long, as text or as a figure, and example orders."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.table import Table

from a3jax.config import Config
from a3jax.curriculum.stage import Stage
from a3jax.errors import UserError
from a3jax.files.folders import check_new, new_file
from a3jax.show.batches import Window, groups_of, orders, spelled
from a3jax.show.pyplot import pyplot
from a3jax.terminal import Terminal
from a3jax.train.optimizer import schedule_of

SENTENCE = "The old man sat down on the bench and watched the boats come home"
"""What example orders are shown on; a word stands for a token."""
FORMATS = ("svg", "png", "pdf")
COLUMNS, POINTS = 48, 1000
"""In how many steps, evenly spread, a curriculum is looked at: in the terminal, and in a figure."""
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Curve:
    """A curriculum at some of its steps."""

    step_C: np.ndarray
    share_C: dict[str, np.ndarray]
    """Of the windows, by order, those that come first first."""
    size_C: np.ndarray
    """Group size, the mean over windows."""
    rate_C: np.ndarray
    """Learning rate."""


def curve(config: Config, points: int) -> Curve:
    """A curriculum at so many steps, evenly spread, or at all if it has fewer."""
    steps = config.schedule.steps
    step_C = np.unique(np.linspace(0, steps - 1, points).round().astype(int))
    rate_C = np.asarray(jax.jit(schedule_of(config.optimizer, config.peak_lr, config.schedule.lengths))(step_C))
    shares: dict[str, np.ndarray] = {}
    size_C, factor_C = np.zeros(len(step_C)), np.zeros(len(step_C))
    for column, step in enumerate(step_C.tolist()):
        _, stage = config.schedule.at(step)
        weight_P, size_P = config.schedule.mixture(step)
        share_P = weight_P / weight_P.sum()
        mean_P = [(1 + size) / 2 if part.sizes == "uniform" else size for part, size in zip(stage.parts, size_P.tolist())]
        size_C[column], factor_C[column] = share_P @ mean_P, stage.lr_factor
        for part, share in zip(stage.parts, share_P.tolist()):
            shares.setdefault(part.name, np.zeros(len(step_C)))[column] += share
    first = {name: int(np.flatnonzero(share_C)[0]) if share_C.any() else len(step_C) for name, share_C in shares.items()}
    return Curve(step_C, {name: shares[name] for name in sorted(shares, key=first.__getitem__)}, size_C, rate_C * factor_C)


def examples(config: Config, stage: Stage, number: int) -> list[Window]:
    """The sentence in orders as the stage draws them at its end."""
    if not number:
        return []
    words = SENTENCE.split()
    drawn = orders(config, 0, np.ones((number, len(words)), np.int32), stage)
    result = []
    for row in range(number):
        group = tuple(groups_of(jax.tree.map(lambda x, row=row: x[row], drawn)).tolist())
        texts, same = (words[0], *(f" {word}" for word in words[1:])), (1,) * len(words)
        result.append(Window(row, "", 0, (), texts, same, (False,) * len(words), group, None))
    return result


def describe(config: Config, number: int) -> list[dict[str, object]]:
    """Every stage that trains, for JSON; `number` example orders each, as the group of every word of the sentence."""
    result, begin = [], 0
    for index, stage in enumerate(config.schedule.stages):
        if not stage.length:
            continue
        batch = config.schedule.windows(stage)
        result.append(
            {
                "stage": index,
                "orders": stage.name,
                "begin": begin,
                "steps": stage.length,
                "ramp": stage.ramp,
                "batch": batch,
                "tokens": stage.length * batch * config.data.length,
                "lr_factor": stage.lr_factor,
                "may_end_early": stage.plateau is not None,
                "mixture": {part.name: part.weight / sum(p.weight for p in stage.parts) for part in stage.parts},
                "examples": [list(window.group) for window in examples(config, stage, number)],
            }
        )
        begin += stage.length
    return result


def show(config: Config, number: int, console: Terminal | None = None) -> None:
    """Print the schedule: a bar of shares for every order, the stages, and `number` example orders of each."""
    console = console or Terminal()
    seen = curve(config, COLUMNS)
    width = max(len(name) for name in [*seen.share_C, "learning rate"])
    for name, share_C in seen.share_C.items():
        console.print(f"{name:{width}} {_bar(share_C)}")
    for name, value_C in (("group size", seen.size_C), ("learning rate", seen.rate_C)):
        top = value_C.max()
        console.print(f"{name:{width}} {_bar(value_C / (top or 1))} at most {top:.4g}", style="dim")
    console.print(f"{'':{width}} 0{config.schedule.steps:>{len(seen.step_C) - 1},} steps\n", style="dim")
    console.print(
        "A bar's height: the share of a step's windows that draw this order; of the dim ones, of the most there is.\n"
    )
    table = Table("stage", "orders", "steps", "ramp", "batch", "tokens", "learning rate", box=box.SIMPLE_HEAD, pad_edge=False)
    for fact in describe(config, 0):
        steps = f"{'at most ' if fact['may_end_early'] else ''}{fact['steps']:,}"
        cells = (
            fact["stage"],
            fact["orders"],
            steps,
            fact["ramp"] or "",
            fact["batch"],
            f"{fact['tokens']:,}",
            f"x {fact['lr_factor']:g}",
        )
        table.add_row(*map(str, cells))
    console.print(table)
    if number:
        console.print(
            "Orders as each stage draws them at its end, a word for a token. ‖ a document begins, [given], x₃ predicted with "
            "group 3, seeing what is given and the groups before. Where there is colour, red comes first and magenta last.\n"
        )
    for index, stage in enumerate(config.schedule.stages):
        if not (stage.length and number):
            continue
        console.print(f"stage {index}, {stage.name}")
        for window in examples(config, stage, number):
            console.print(spelled(window))
        console.print()


def draw(config: Config, file: Path) -> None:
    """The schedule as a new figure.

    Raises `UserError` for a format that is none, for a file that is there already, and where matplotlib is not installed.
    """
    if file.suffix[1:] not in FORMATS:
        raise UserError(f"{file} is to be a figure; its name must end in .{', .'.join(FORMATS)}")
    check_new(file)
    plt = pyplot()
    seen = curve(config, POINTS)
    figure, (shares, sizes) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(3, 1), layout="constrained")
    shares.stackplot(seen.step_C, *seen.share_C.values(), labels=list(seen.share_C), step="post", alpha=0.85)
    shares.set_ylabel("share of the windows")
    shares.set_ylim(0, 1)
    sizes.step(seen.step_C, seen.size_C, where="post", color="black", label="group size")
    sizes.set_ylabel("group size")
    sizes.set_xlabel("step")
    rates = sizes.twinx()
    rates.plot(seen.step_C, seen.rate_C, color="tab:red", linewidth=1)
    rates.set_ylabel("learning rate", color="tab:red")
    for axis in (sizes, rates):
        axis.set_ylim(bottom=0)
    for end in config.schedule.ends[:-1]:
        for panel in (shares, sizes):
            panel.axvline(end, color="black", linewidth=0.6, linestyle=":")
    figure.legend(*shares.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    shares.set_title(config.name)
    with new_file(file) as unfinished:
        figure.savefig(unfinished, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _bar(value_C: np.ndarray) -> str:
    """Values from 0 to 1 as bars; what is there at all can be seen."""
    levels = np.ceil(np.clip(value_C, 0, 1) * (len(_BARS) - 1) - 1e-6).astype(int)
    return "".join(_BARS[level] for level in levels.tolist())
