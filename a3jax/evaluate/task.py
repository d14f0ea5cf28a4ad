"""What a task is, and how it is run: items of like length together, each result kept, so that a stopped run goes on.

A task's results lie in OUT/TASK.jsonl: first a line that says what they follow from, then a line for each item, shortest
item first. A batch is written at once, and batches begin at the same items in every run, so that a run that was stopped
ends with the bytes of one that was not.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from a3jax.devices.processes import is_first
from a3jax.devices.writing import by_first, growing_by_first
from a3jax.errors import UserError
from a3jax.evaluate.results import Found
from a3jax.files.jsonl import Lines
from a3jax.progress import Progress


class Item(NamedTuple):
    """One thing that is evaluated."""

    id: str
    length: int
    """In tokens; items are taken by it."""
    content: Any
    """Whatever the task needs, as JSON values and tuples of them."""
    cluster: str | None = None
    """What it is a part of, such as a text, where other items may be parts of it too (`a3jax.evaluate.results`)."""


class Task(Protocol):
    """A set of items with what is measured on each."""

    name: str
    protocol: dict[str, Any]
    """All that the figures follow from besides models and items, as JSON values."""
    data: dict[str, Any]
    """Where the items come from, and how many of what else there was are left out, by reason."""
    items: list[Item]

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """A result for each item, of which there are at most `batch`.

        It has `figures`, as `results.Figures` says, and whatever else is worth reading.
        """


Rows = list[dict[str, Any]]


def found(rows: Rows) -> Found:
    """The figures of results, by what their items are parts of."""
    return [(row["cluster"] if "cluster" in row else row["id"], row["figures"]) for row in rows]


def digest(items: Sequence[Item]) -> str:
    """SHA-256 of all items, contents included, in the order in which they are taken."""
    contents = [(item.id, item.length, item.content) for item in _by_length(items)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _by_length(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.length)


def run(task: Task, models: dict[str, Any], out: Path | None, batch: int) -> Rows:
    """Evaluate every item, `batch` at a time, and return all results, those that an earlier run left in `out` included.

    `models` says which they are. Of several processes all compute, and process 0 reads and writes. Raises `UserError` for a
    task without items, and for results of another evaluation.
    """
    if not task.items:
        left_out = ", ".join(f"{reason} {count}" for reason, count in task.data["left_out"].items())
        raise UserError(f"{task.data['source']}: nothing is left to evaluate ({left_out or 'it is empty'})")
    items = _by_length(task.items)
    if out is None:
        return _evaluate(task, items, [], batch, None)
    made_from = {"models": models, "data": {**task.data, "sha256": digest(items)}, "protocol": task.protocol}
    path = out / f"{task.name}.jsonl"
    by_first(functools.partial(_make, out))
    with growing_by_first(path, "result of a3jax evaluate", "models", "id", holds=("models", "figures")) as file:

        def done() -> Rows:
            there = _done(file, path, json.loads(json.dumps(made_from)), items)
            if len(there) < len(items):
                there = there[: len(there) // batch * batch]
            file.keep(1 + len(there))
            return there

        return _evaluate(task, items, by_first(done), batch, file)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; choose another place") from None


def _evaluate(task: Task, items: Sequence[Item], done: Rows, batch: int, file: Lines | None) -> Rows:
    rows = list(done)
    with Progress(task.name, len(items), "items", completed=len(rows), lines=is_first()) as bar:
        for begin in range(len(rows), len(items), batch):
            chosen = items[begin : begin + batch]
            results = [{**_named(item), **row} for item, row in zip(chosen, task.evaluate(chosen, min(batch, len(items))))]
            if file is not None:
                by_first(functools.partial(file.append, results))
            rows += results
            bar.advance(len(results))
    return rows


def _named(item: Item) -> dict[str, str]:
    return {"id": item.id} if item.cluster is None else {"id": item.id, "cluster": item.cluster}


def _done(file: Lines, path: Path, made_from: dict[str, Any], items: Sequence[Item]) -> Rows:
    """The results that are there already. A new file gets its first line."""
    there = file.there()
    if (first := next(there, None)) is None:
        file.append([made_from])
        return []
    changed = [name for name in made_from if first.value.get(name) != made_from[name]]
    if changed:
        raise UserError(f"{path} has results with other {' and '.join(changed)}; choose another folder, or remove it")
    rows, left = [], iter(items)
    for line in there:
        item = next(left, None)
        if item is None or line.value.get("id") != item.id:
            raise UserError(f"{line.where} is a result of something else; choose another folder, or remove the file")
        rows.append(line.value)
    return rows
