"""Evaluations of several checkpoints as one comparison: the figures of each, and what they are above those of the first.

Differences are paired, so they are between results of the same items by the same protocol; only how the models decode may
differ, and is told. Everything is read from the folders that evaluations write.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from a3jax.errors import UserError, shown
from a3jax.evaluate.results import Tables, as_json, columns, counted, differences, print_table, tabulate, written
from a3jax.evaluate.results_folder import Evaluation, MadeFrom, Results
from a3jax.evaluate.task import Task, digest
from a3jax.files.strict import flat
from a3jax.outside_text import show

DECODING = "decoding"
"""The part of a protocol that may differ."""
COMPARED = ("model", "baseline")
"""The roles of models that may differ; any other, such as the judge, is part of how they are measured."""


class Compared(NamedTuple):
    """One task, by the names of evaluations."""

    task: str
    results: dict[str, Results]
    """The first one's first."""
    decoding: dict[str, dict[str, tuple[Any, Any]]]
    """Of those that decode otherwise: each field that differs, as the first has it and as they do."""
    figures: dict[str, Tables]
    differences: dict[str, Tables]
    """Of all but the first, from the first."""

    @property
    def first(self) -> Results:
        """Those that the others are compared with."""
        return next(iter(self.results.values()))


class Line(NamedTuple):
    """Of a table with a line for each evaluation, and one for each difference."""

    row: str
    """What was measured, where it is not that of the line before."""
    name: str
    cells: list[str]
    is_difference: bool


def check(evaluations: Sequence[Evaluation]) -> None:
    """Raise `UserError` unless all have the same tasks, and in these the same items, protocol and judge."""
    for first, other in ((evaluations[0], other) for other in evaluations[1:]):
        for one, two in ((first, other), (other, first)):
            for task in one.tasks.keys() - two.tasks.keys():
                raise UserError(f"{two.name} has no results of {task}, and {one.name} has; name with --tasks what both have")
        for task, (made_from, rows) in other.tasks.items():
            there, theirs = first.tasks[task]
            _check_same(f"{task}: {other.name}", made_from, there, first.name)
            if [row.id for row in rows] != [row.id for row in theirs]:
                raise UserError(
                    f"{task}: the items of {other.name} do not stand as those of {first.name}; evaluate them again"
                )


def check_before(name: str, tasks: Sequence[Task], known: Sequence[Evaluation]) -> None:
    """Raise `UserError` where tasks that are to be run for `name` could not be compared with the first that is known."""
    for first, task in ((first, task) for first in known[:1] for task in tasks):
        there = first.tasks[task.name].made_from
        here = MadeFrom(there.models, {"sha256": digest(task.items)}, json.loads(json.dumps(task.protocol)))
        _check_same(f"{task.name}: {name}", here, there, first.name)


def _check_same(who: str, here: MadeFrom, there: MadeFrom, first: str) -> None:
    if here.data.get("sha256") != there.data.get("sha256"):
        raise UserError(
            f"{who} is not about the same items as {first}: the data, the options or the tokenizer, which cuts and counts "
            "them, are others; evaluate both alike"
        )
    roles = [role for role in dict.fromkeys([*here.models, *there.models]) if role not in COMPARED]
    for role in roles:
        if here.models.get(role) != there.models.get(role):
            raise UserError(f"{who} has another {role} than {first}; give both the same --{role}")
    for field, (before, after) in _changes(_measure(there), _measure(here)).items():
        raise UserError(
            f"{who} is measured by another protocol than {first}: {field} is {shown(after)}, there {shown(before)}; "
            "evaluate both alike"
        )


def _measure(made_from: MadeFrom) -> dict[str, Any]:
    return {name: value for name, value in made_from.protocol.items() if name != DECODING}


def _changes(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, by dotted name; None where there is none."""
    before, after = dict(flat(first)), dict(flat(second))
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def compare(evaluations: Sequence[Evaluation]) -> list[Compared]:
    """All tasks of evaluations, the first of which is what the others differ from. Raises as `check`."""
    check(evaluations)
    first, *others = evaluations
    compared = []
    for task, (made_from, _) in first.tasks.items():
        results = {each.name: each.tasks[task] for each in evaluations}
        before = made_from.protocol.get(DECODING, {})
        decoding = {name: _changes(before, one.made_from.protocol.get(DECODING, {})) for name, one in results.items()}
        figures = {name: tabulate(one.found) for name, one in results.items()}
        above = {other.name: differences(results[first.name].found, other.tasks[task].found) for other in others}
        compared.append(Compared(task, results, {name: one for name, one in decoding.items() if one}, figures, above))
    return compared


def document(evaluations: Sequence[Evaluation], compared: Sequence[Compared]) -> dict[str, Any]:
    """A comparison as JSON values."""
    tasks = {
        one.task: {
            "protocol": one.first.made_from.protocol,
            "decoding_differs": one.decoding,
            "data": one.first.made_from.data,
            "items": len(one.first.rows),
            "tables": {name: as_json(tables) for name, tables in one.figures.items()},
            "differences": {name: as_json(tables) for name, tables in one.differences.items()},
        }
        for one in compared
    }
    names = [each.name for each in evaluations]
    return {"compared": names, "evaluations": {each.name: each.facts for each in evaluations}, "tasks": tasks}


def told(one: Compared) -> list[str]:
    """A sentence for each evaluation that decodes otherwise than the first."""
    first = next(iter(one.results))
    return [
        f"{name} decodes otherwise than {first}: "
        + ", ".join(f"{field} is {shown(here)}, there {shown(there)}" for field, (there, here) in fields.items())
        for name, fields in one.decoding.items()
    ]


def tables_of(one: Compared) -> list[tuple[str, list[str], list[Line]]]:
    """Every table of a task: its name, its columns, and its lines."""
    figures = list(one.figures.values())
    found = []
    for table in dict.fromkeys(table for tables in figures for table in tables):
        rows = [tables.get(table, {}) for tables in figures]
        names = columns({f"{i} {row}": cells for i, each in enumerate(rows) for row, cells in each.items()})
        lines = [
            line for row in dict.fromkeys(row for each in rows for row in each) for line in _lines(one, table, row, names)
        ]
        found.append((table, names, lines))
    return found


def _lines(one: Compared, table: str, row: str, names: Sequence[str]) -> Iterator[Line]:
    label = row
    for name, tables in one.figures.items():
        cells = tables.get(table, {}).get(row, {})
        yield Line(label, name, [written(cells.get(column)) for column in names], False)
        label = ""
        if less := one.differences.get(name, {}).get(table, {}).get(row):
            yield Line("", "difference", [written(less.get(column), "+") for column in names], True)


def print_comparison(compared: Sequence[Compared]) -> None:
    """On standard output, a figure as `value ± standard error`, and below it the difference from that of the first."""
    for one in compared:
        show("\n".join([f"{one.task}: {counted(one.first.made_from.data)}", *told(one)]) + "\n")
        for name, heads, lines in tables_of(one):
            print_table(name, heads, [(line.row, line.name, *line.cells) for line in lines], labels=2)
