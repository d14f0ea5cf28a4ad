"""What an evaluation found: every figure is a ratio of two sums over items, and so has one formula for its standard error.

Nats per token are the nats of all items over their tokens; a mean score is the sum of scores over the number of items. A
perplexity is the exponential of such a ratio.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from a3jax.terminal import Terminal

Share = tuple[float, float]
"""What an item adds to the numerator and to the denominator of a figure."""
Figures = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Table -> row -> column -> an item's share."""


class Estimate(NamedTuple):
    """A figure with its standard error over items."""

    value: float
    error: float | None
    """None where a single item has no spread."""
    items: int


PERPLEXITY = "perplexity"
"""The column whose shares are nats and tokens, and whose figure is not their ratio but its exponential."""
WIDTH = 240
"""Columns of a printed table, at most: a figure that is cut off is none, so that a narrow terminal has to wrap lines."""
Tables = dict[str, dict[str, dict[str, Estimate]]]


def ratio(shares: Sequence[Sequence[float]]) -> Estimate:
    """The sum of numerators over that of denominators. The error is that of a ratio estimator, items being independent.

    With denominators of 1 it is the mean and the usual standard error, s / sqrt(n).
    """
    above, below = (math.fsum(column) for column in zip(*shares))
    count, value = len(shares), above / below
    if count < 2:
        return Estimate(value, None, count)
    squares = math.fsum((x - value * y) ** 2 for x, y in shares)
    return Estimate(value, math.sqrt(squares * count / (count - 1)) / below, count)


def perplexity(shares: Sequence[Sequence[float]]) -> Estimate:
    """The exponential of nats per token, and its error to first order."""
    nats = ratio(shares)
    value = math.exp(min(nats.value, 700.0))
    return Estimate(value, None if nats.error is None else value * nats.error, nats.items)


def tabulate(figures: Iterable[Figures]) -> Tables:
    """The figures of all items together, tables, rows and columns in the order in which they come up."""
    found: dict[str, dict[str, dict[str, list[Sequence[float]]]]] = {}
    for each in figures:
        for table, rows in each.items():
            for row, columns in rows.items():
                for column, share in columns.items():
                    found.setdefault(table, {}).setdefault(row, {}).setdefault(column, []).append(share)
    return {
        table: {
            row: {column: (perplexity if column == PERPLEXITY else ratio)(shares) for column, shares in columns.items()}
            for row, columns in rows.items()
        }
        for table, rows in found.items()
    }


def as_json(tables: Tables) -> dict[str, Any]:
    """The same with names for the parts of an estimate."""
    return {
        table: {row: {column: one._asdict() for column, one in columns.items()} for row, columns in rows.items()}
        for table, rows in tables.items()
    }


def print_tables(tables: Tables) -> None:
    """On standard output, a figure as `value ± standard error`."""
    console = Terminal(width=WIDTH)
    for name, rows in tables.items():
        names = columns(rows)
        shown = Table("", *names, title=name, title_justify="left", box=None, header_style="bold")
        for column in shown.columns[1:]:
            column.justify = "right"
            column.no_wrap = True
        for row, found in rows.items():
            shown.add_row(row, *(written(found.get(column)) for column in names))
        console.print(shown)
        console.print()


def columns(table: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Of all rows, in the order in which they come up."""
    return list(dict.fromkeys(column for row in table.values() for column in row))


def written(estimate: Estimate | None) -> str:
    """A figure with its standard error, empty where there is none."""
    if estimate is None:
        return ""
    return f"{estimate.value:.3f}" + ("" if estimate.error is None else f" ± {estimate.error:.3f}")
