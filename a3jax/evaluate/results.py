"""What an evaluation found: every figure is a ratio of two sums over items, and so has one formula for its standard error.

Nats per token are the nats of all items over their tokens; a mean score is the sum of scores over the number of items. A
perplexity is the exponential of such a ratio. Items are taken to be independent, but for those of one cluster, such as a
text, a file or a function, which count together: figures are the same, and their errors those of a sample of clusters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from rich.table import Table

from a3jax.terminal import Terminal

Share = tuple[float, float]
"""What an item adds to the numerator and to the denominator of a figure."""
Figures = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Table -> row -> column -> an item's share."""
Found = Iterable[tuple[str, Figures]]
"""Of every item its cluster, or its own id where it is alone, and what was found of it."""


class Estimate(NamedTuple):
    """A figure with its standard error over items."""

    value: float
    error: float | None
    """None where a single item has no spread."""
    items: int
    """Independent ones."""


PERPLEXITY = "perplexity"
"""The column whose shares are nats and tokens, and whose figure is not their ratio but its exponential."""
WIDTH = 240
"""Columns of a printed table, at most: a figure that is cut off is none, so that a narrow terminal has to wrap lines."""
Key = TypeVar("Key", int, str)
Tables = dict[str, dict[str, dict[str, Estimate]]]


def ratio(shares: Sequence[Sequence[float]]) -> Estimate:
    """The sum of numerators over that of denominators. The error is that of a ratio estimator, items being independent.

    With denominators of 1 it is the mean and the usual standard error, s / sqrt(n).
    """
    above, below = (math.fsum(column) for column in zip(*shares))
    count, value = len(shares), above / below
    if count < 2:
        return Estimate(value, None, count)
    return Estimate(value, _spread([x - value * y for x, y in shares]) / below, count)


def perplexity(shares: Sequence[Sequence[float]]) -> Estimate:
    """The exponential of nats per token, and its error to first order."""
    nats = ratio(shares)
    value = math.exp(min(nats.value, 700.0))
    return Estimate(value, None if nats.error is None else value * nats.error, nats.items)


def difference(first: Mapping[Key, Share], second: Mapping[Key, Share], column: str) -> Estimate:
    """What a figure of `second` is above that of `first`, each the shares of items by their name.

    The error is that of a difference of two ratios, r = X / Y and r' = X' / Y', over one sample of n independent items:
    var(r' - r) = var(r) + var(r') - 2 cov(r, r') (Kish and Hess 1959, "On variances of ratios and their differences in
    multi-stage samples", Journal of the American Statistical Association 54, 416-446). With each of the three to first
    order, as in `ratio`, that is n / (n - 1) times the sum over items of ((x' - r' y') / Y' - (x - r y) / Y) squared. With
    denominators of 1 it is that of a mean of paired differences, s / sqrt(n). A perplexity deviates, to first order, by
    itself times what its nats per token do. An item of which one has no share adds nothing there.
    """
    items = sorted(first.keys() | second.keys())
    (before, moved), (after, moved_after) = (
        _deviations([shares.get(item, (0.0, 0.0)) for item in items], column) for shares in (first, second)
    )
    error = None if len(items) < 2 else _spread([other - one for one, other in zip(moved, moved_after)])
    return Estimate(after - before, error, len(items))


def _deviations(shares: Sequence[Share], column: str) -> tuple[float, list[float]]:
    """A figure, and by how much each item moves it, to first order."""
    below, plain, value = math.fsum(y for _, y in shares), ratio(shares).value, _figure(column, shares).value
    scale = (value if column == PERPLEXITY else 1.0) / below
    return value, [(x - plain * y) * scale for x, y in shares]


def _spread(deviations: Sequence[float]) -> float:
    """The standard error of a sum over independent items, each by how much it is off its mean."""
    count = len(deviations)
    return math.sqrt(math.fsum(one**2 for one in deviations) * count / (count - 1))


def _figure(column: str, shares: Sequence[Share]) -> Estimate:
    return perplexity(shares) if column == PERPLEXITY else ratio(shares)


def tabulate(found: Found) -> Tables:
    """The figures of all items together, tables, rows and columns in the order in which they come up."""
    return {
        table: {
            row: {column: _figure(column, list(shares.values())) for column, shares in columns.items()}
            for row, columns in rows.items()
        }
        for table, rows in _by_cluster(found).items()
    }


def differences(first: Found, second: Found) -> Tables:
    """What each figure that both have is in `second` above what it is in `first`; they are about the same items."""
    before, after = _by_cluster(first), _by_cluster(second)
    found: Tables = {}
    for table, rows in after.items():
        for row, columns in rows.items():
            for column, shares in columns.items():
                if other := before.get(table, {}).get(row, {}).get(column):
                    found.setdefault(table, {}).setdefault(row, {})[column] = difference(other, shares, column)
    return found


def _by_cluster(found: Found) -> dict[str, dict[str, dict[str, dict[str, Share]]]]:
    """Table -> row -> column -> cluster -> its share."""
    shares: dict[str, dict[str, dict[str, dict[str, Share]]]] = {}
    for cluster, figures in found:
        for table, rows in figures.items():
            for row, columns in rows.items():
                for column, (above, below) in columns.items():
                    of = shares.setdefault(table, {}).setdefault(row, {}).setdefault(column, {})
                    before = of.get(cluster, (0.0, 0.0))
                    of[cluster] = before[0] + above, before[1] + below
    return shares


def as_json(tables: Tables) -> dict[str, Any]:
    """The same with names for the parts of an estimate."""
    return {
        table: {row: {column: one._asdict() for column, one in columns.items()} for row, columns in rows.items()}
        for table, rows in tables.items()
    }


def print_tables(tables: Tables) -> None:
    """On standard output, a figure as `value ± standard error`."""
    for name, rows in tables.items():
        names = columns(rows)
        print_table(name, names, [(row, *(written(found.get(column)) for column in names)) for row, found in rows.items()])


def print_table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]], labels: int = 1) -> None:
    """On standard output, each line with so many labels before its cells."""
    console = Terminal(width=WIDTH)
    shown = Table(*[""] * labels, *columns, title=title, title_justify="left", box=None, header_style="bold")
    for column in shown.columns[labels:]:
        column.justify = "right"
        column.no_wrap = True
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
    console.print()


def counted(data: Mapping[str, Any]) -> str:
    """What a task's items are taken from, and what of it is left out, on one line."""
    counts = [f"{name.replace('_', ' ')} {value}" for name, value in data.items() if name not in ("left_out", "sha256")]
    left_out = [f"{reason} {count}" for reason, count in data.get("left_out", {}).items()]
    return f"{', '.join(counts)}{'; left out: ' if left_out else ''}{', '.join(left_out)}"


def columns(table: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Of all rows, in the order in which they come up."""
    return list(dict.fromkeys(column for row in table.values() for column in row))


def written(estimate: Estimate | None, sign: Literal["-", "+"] = "-") -> str:
    """A figure with its standard error, empty where there is none; with `+` one above zero has a sign too."""
    if estimate is None:
        return ""
    return f"{estimate.value:{sign}.3f}" + ("" if estimate.error is None else f" ± {estimate.error:.3f}")
