"""Tasks run one after another, and their results as one document with everything that they follow from."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from a3jax.devices.writing import by_first
from a3jax.errors import UserError
from a3jax.evaluate import by_order
from a3jax.evaluate.candidates import REPORT, RESULTS
from a3jax.evaluate.plot import plot
from a3jax.evaluate.report import report
from a3jax.evaluate.results import Tables, as_json, tabulate
from a3jax.evaluate.task import Rows, Task, digest, found, run
from a3jax.files.folders import check_ours, write_whole
from a3jax.show.pyplot import pyplot
from a3jax.weights.identity import identity
from a3jax.weights.loading import Model


def evaluate(
    tasks: Sequence[Task], models: dict[str, Model], out: Path | None, batch: int
) -> tuple[dict[str, Any], dict[str, Tables]]:
    """Run tasks, and return what is in `RESULTS`, with the tables by task.

    In `out` go each task's results by item, from which a stopped evaluation goes on, `RESULTS`, curves of the task
    `likelihood`, and all of it as a page, `REPORT`. Raises `UserError` as `task.run` does, and for files of these names that
    are somebody else's.
    """
    if out is not None:
        by_first(lambda: _check(out, tasks))
    identities = {number: identity(model) for number, model in {id(model): model for model in models.values()}.items()}
    known = {name: identities[id(model)] for name, model in models.items()}
    results: dict[str, Any] = {"models": known, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "tasks": {}}
    evaluated: list[tuple[Task, Rows, Tables]] = []
    for task in tasks:
        rows = run(task, known, out, batch)
        tables = tabulate(found(rows))
        evaluated.append((task, rows, tables))
        facts = {"protocol": task.protocol, "data": {**task.data, "sha256": digest(task.items)}, "items": len(rows)}
        results["tasks"][task.name] = {**facts, "tables": as_json(tables)}
        if out is not None:
            by_first(functools.partial(_write, out, results, evaluated))
    return results, {task.name: tables for task, _, tables in evaluated}


def _write(out: Path, results: dict[str, Any], evaluated: Sequence[tuple[Task, Rows, Tables]]) -> None:
    task, _, tables = evaluated[-1]
    write_whole(out / RESULTS, json.dumps(results, indent=1) + "\n")  # first: the others are known by it
    if task.name == by_order.ByOrder.name:
        curves = plot(tables, (by_order.BY_POSITION, by_order.BY_VISIBLE))
        write_whole(out / f"{task.name}.svg", curves)
    write_whole(out / REPORT, report(results, evaluated))


def _check(out: Path, tasks: Sequence[Task]) -> None:
    """What is better told now than after the work."""
    if any(task.name == by_order.ByOrder.name for task in tasks):
        pyplot()
    check_ours(out / RESULTS, '{\n "models": ')
    begun = any((out / name).exists() for name in (RESULTS, *(f"{task.name}.jsonl" for task in tasks)))
    for name in (REPORT, *(f"{task.name}.svg" for task in tasks)):
        if not begun and (out / name).exists():
            raise UserError(f"{out / name} is there and no evaluation beside it: it is none of ours; choose another folder")
