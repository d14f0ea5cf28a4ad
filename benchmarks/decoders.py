"""Lines of packages that no model has seen, filled in by every decoder: how good, in how many passes, in which time.

python benchmarks/decoders.py CHECKPOINT --lines 100

The lines are those of the duel (experiments/duel_base.py): one of a file, with 128 tokens before it and 64 behind it, its
length told. Figures have standard errors over files; what is above one token a pass, from left to right, is paired by file.
The same command goes on where it was stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import duel_figures
from common import run, show
from duel_lines import TRUTH, Lines, Way, ways
from tyro.conf import Positional, arg

import a3jax
from a3jax.evaluate.results import Estimate, difference, ratio
from a3jax.evaluate.task import run as evaluate
from a3jax.weights.identity import identity
from a3jax.weights.loading import Dtype

AGAINST = "left to right"
COMPARED = ("exact", "parses", "ROUGE-L", "nats per token")
COLUMNS = (*COMPARED, "passes per token", "milliseconds per token")


@dataclass(frozen=True)
class Options:
    """Lines of unseen packages, filled in by every decoder.

    python benchmarks/decoders.py models/smollm2-code
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    packages: Literal["dev", "test"] = "test"
    """Choose by the lines of `dev`, and report those of `test`."""
    lines: int = 100
    """As many as there are files with one, at most."""
    dynamic: tuple[float, ...] = (0.5, 0.3, 0.2)
    """Thresholds of mode dynamic."""
    drafts: tuple[int, ...] = ()
    """Of mode speculative, besides its own number; with the model's own drafts, and with those of the text alone."""
    only: tuple[str, ...] = ()
    """Ways by their names, such as 'left to right'; all without any."""
    dtype: Dtype = "float32"
    out: Path = Path("results/decoders")
    """Folder of the results line by line, in one of the packages' name."""
    json: bool = False


def main(options: Options) -> None:
    """One row for each decoder, and one for what it is above one token a pass."""
    model = a3jax.load(options.checkpoint, options.dtype)
    own = ways(model)
    if AGAINST in own:
        own |= {f"dynamic {least:g}": Way(a3jax.Decoding(mode="dynamic", threshold=least)) for least in options.dynamic}
        for n in options.drafts:
            own[f"speculative {n}"] = Way(a3jax.Decoding(mode="speculative", drafts=n))
            own[f"speculative {n}, text"] = Way(a3jax.Decoding(mode="speculative", drafts=n, drafter="text"))
    if unknown := set(options.only) - set(own):
        raise a3jax.UserError(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(own)}")
    own = {name: way for name, way in own.items() if not options.only or name in options.only}
    files = duel_figures.files(options.packages)
    task = Lines(model, own, f"{options.packages} packages", files, options.lines)
    found = evaluate(task, {"model": identity(model)}, options.out / options.packages, duel_figures.BATCH)
    figures = [row["figures"] for row in found]

    def shares(way: str, column: str) -> dict[int, tuple[float, float]]:
        table = TRUTH if column == "nats per token" else task.name
        return {number: tuple(each[table][way][column]) for number, each in enumerate(figures)}

    against = AGAINST if AGAINST in own else next(iter(own))
    rows, above = [], []
    for way in own:
        figures_of = {column: shares(way, column) for column in COLUMNS}
        mean = {column: ratio(list(each.values())) for column, each in figures_of.items()}
        rows.append(
            {"decoder": way}
            | {column: _shown(mean[column]) for column in COMPARED}
            | {column: mean[column].value for column in COLUMNS if column not in COMPARED}
        )
        if way != against:
            differ = {column: difference(shares(against, column), figures_of[column], column) for column in COMPARED}
            above.append({"decoder": way} | {column: _shown(one) for column, one in differ.items()})
    show(f"{len(found)} lines of {options.packages} packages, {options.checkpoint}", rows, options.json)
    show(f"Above: {against}", above, options.json)


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.error or 0:.3f}"


if __name__ == "__main__":
    run(main, Options)
