"""The tables of docs/evaluate.md on HumanEval's infilling, from what each problem gave: experiments/results/shown.

python benchmarks/humaneval_table.py                                           # prints the tables
python benchmarks/humaneval_table.py --keep healed results/healed             # takes an evaluation in, under a name

`a3jax evaluate --out FOLDER` writes a line for each problem. Several folders are kept under one name, so that problems that
one left out are taken from another: those above 512 tokens were filled in later, on another machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common import run
from tyro.conf import Positional, arg

from a3jax.errors import UserError
from a3jax.evaluate.blanks import BOTH, LEFT
from a3jax.evaluate.humaneval import function_of
from a3jax.evaluate.results import Estimate, Share, difference, ratio

KEPT = Path(__file__).parents[1] / "experiments" / "results" / "shown" / "humaneval_items.json"
COLUMNS = ("pass@1", "exact", "nats per token")
SPACE, CHOSEN = ", white space given", ", length chosen"
Items = Mapping[str, Mapping[str, Mapping[str, Share]]]
"""Problem -> row -> column -> its share."""


@dataclass(frozen=True)
class Options:
    """Print the tables, or keep the results of an evaluation under a name."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER")] = ()
    """With --keep: what a3jax evaluate wrote with --out."""
    keep: str | None = None
    """adapted, source or healed."""


def items_of(folder: Path) -> dict[str, Any]:
    """What each problem gave, to four digits. Raises `UserError` if the folder has no such results."""
    file = folder / "humaneval_infill.jsonl"
    if not file.exists():
        raise UserError(f"{file} does not exist; name a folder that a3jax evaluate --tasks humaneval_infill --out wrote")
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    figures = {row["id"]: next(iter(row["figures"].values())) for row in rows}
    return {
        id: {row: {column: (round(x, 4), n) for column, (x, n) in columns.items()} for row, columns in each.items()}
        for id, each in figures.items()
    }


def cells(estimates: Mapping[str, Estimate], signed: bool = False) -> str:
    """A row of figures with their errors."""
    sign = "+" if signed else ""
    told = (f"{one.value:{sign}.3f} ± {one.error:.3f}" if (one := estimates.get(name)) else "" for name in COLUMNS)
    return " | ".join(told)


def shares(items: Items, row: str, column: str) -> dict[str, Share]:
    """Of the functions with a problem that has the column: those of one function count together."""
    found: dict[str, Share] = {}
    for id in sorted(items):
        if share := items[id].get(row, {}).get(column):
            above, below = found.get(function_of(id), (0.0, 0.0))
            found[function_of(id)] = above + share[0], below + share[1]
    return found


def estimates(items: Items, row: str) -> dict[str, Estimate]:
    """The figures of a row."""
    each = {column: shares(items, row, column) for column in COLUMNS}
    return {column: ratio(list(one.values())) for column, one in each.items() if one}


def paired(one: Items, row: str, other: Items, other_row: str) -> str:
    """What a row is above another, over the problems of both."""
    both = one.keys() & other.keys()
    first, second = ({id: items[id] for id in both} for items in (one, other))
    found = {
        column: difference(shares(second, other_row, column), shares(first, row, column), column)
        for column in COLUMNS
        if shares(second, other_row, column) and shares(first, row, column)
    }
    return cells(found, signed=True)


def main(options: Options) -> None:
    """Keep, or print."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if options.keep:
        kept[options.keep] = {id: found for folder in options.folders for id, found in items_of(folder).items()}
        KEPT.write_text(json.dumps(kept, sort_keys=True, separators=(",", ":")).replace('},"Single', '},\n"Single') + "\n")
        return
    missing = {"adapted", "source", "healed"} - kept.keys()
    if missing:
        raise UserError(f"{KEPT} has no {', '.join(sorted(missing))}; keep them first")
    adapted, source, healed = kept["adapted"], kept["source"], kept["healed"]
    rows = [(row, adapted, row) for row in (BOTH, LEFT, BOTH + SPACE, LEFT + SPACE, BOTH + CHOSEN)]
    rows += [(f"the source, {row}", source, row) for row in (BOTH, BOTH + SPACE)]
    table(adapted, rows)
    for end in ("", SPACE):
        print(f"| both less left only{end}, paired | {paired(adapted, BOTH + end, adapted, LEFT + end)} |")
    print(f"| adapted less source{SPACE}, paired | {paired(adapted, BOTH + SPACE, source, BOTH + SPACE)} |\n")
    apart = {id: adapted[id] for id in healed}
    for end in ("", SPACE):
        rows = [(row + end, healed, row + end) for row in (BOTH, LEFT)]
        table(healed, rows + [(f"{row}{end}, --no-heal", apart, row + end) for row in (BOTH, LEFT)])
        print(f"| both less left only{end}, paired | {paired(healed, BOTH + end, healed, LEFT + end)} |\n")


def table(items: Items, rows: Sequence[tuple[str, Items, str]]) -> None:
    """Rows, each with its name and whose it is, below how many problems they are about. Errors are over functions."""
    print(f"| {len(items)} problems | {' | '.join(COLUMNS)} |\n|---|---|---|---|")
    for name, found, row in rows:
        print(f"| {name} | {cells(estimates(found, row))} |")


if __name__ == "__main__":
    run(main, Options)
