"""Results as they lie in the folder of an evaluation, read again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from a3jax.errors import UserError
from a3jax.evaluate.candidates import RESULTS
from a3jax.evaluate.results import Figures, Found
from a3jax.files.outside_json import read_object
from a3jax.files.reading import lines, opened
from a3jax.files.strict import build


@dataclass(frozen=True)
class MadeFrom:
    """What a task's results follow from, as the first line of their file has it."""

    models: dict[str, dict[str, Any]]
    data: dict[str, Any]
    protocol: dict[str, Any]


class Row(NamedTuple):
    """What came of one item."""

    id: str
    figures: Figures
    truth: str
    texts: dict[str, str]
    """What was filled in, by what was seen; empty where nothing was."""
    cluster: str
    """What the item is a part of, or its own id."""


class Results(NamedTuple):
    """Of one task and checkpoint."""

    made_from: MadeFrom
    rows: list[Row]

    @property
    def found(self) -> Found:
        """What figures are made of."""
        return [(row.cluster, row.figures) for row in self.rows]


class Evaluation(NamedTuple):
    """All results of one checkpoint."""

    name: str
    facts: dict[str, Any]
    """What `RESULTS` says beside the tasks: models, versions, device."""
    tasks: dict[str, Results]


def read(name: str, folder: Path, tasks: Sequence[str]) -> Evaluation:
    """The results of `tasks` in a folder, of all that it has if none is named.

    Raises `UserError` for files that are not those of an evaluation, or of one that did not come to its end.
    """
    facts = read_object(folder / RESULTS)
    there = build(dict[str, dict[str, Any]], facts.pop("tasks", None), f"{folder / RESULTS}: tasks")
    found = {}
    for task in tasks or there:
        if task not in there:
            raise UserError(f"{folder} has no results of {task}; it has those of {', '.join(there)}")
        path = folder / f"{task}.jsonl"
        with opened(str(path)) as (source, where):
            each = lines(source, where)
            first = next(each, None)
            if first is None:
                raise UserError(f"{path} is empty; evaluate again")
            rows = [_row(line.value, line.where) for line in each]
            results = Results(build(MadeFrom, first.value, first.where), rows)
        if results.made_from.models != facts.get("models"):
            raise UserError(f"{path} is about other models than {RESULTS} beside it; evaluate them again")
        if len(rows) != there[task].get("items"):
            raise UserError(f"{path} has {len(rows)} of {there[task].get('items')} items; evaluate the others first")
        found[task] = results
    return Evaluation(name, facts, found)


def _row(value: dict[str, Any], where: str) -> Row:
    """What a line says of an item. Raises `UserError` for anything else."""
    figures = build(dict[str, dict[str, dict[str, tuple[float, ...]]]], value.get("figures"), f"{where}: figures")
    if any(len(share) != 2 for rows in figures.values() for row in rows.values() for share in row.values()):
        raise UserError(f"{where}: figures are no pairs of numbers; evaluate again")
    texts = build(dict[str, str], value.get("texts", {}), f"{where}: texts")
    truth = build(str, value.get("truth", ""), f"{where}: truth")
    id = build(str, value.get("id"), f"{where}: id")
    return Row(id, figures, truth, texts, build(str, value.get("cluster", id), f"{where}: cluster"))
