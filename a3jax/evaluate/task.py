"""What a task is, and how it is run: items of like length together, each result kept, so that a stopped run goes on.

A task's results lie in OUT/TASK.jsonl: first a line that says what they follow from, then a line for each item, shortest
item first. A batch is written at once, and batches begin at the same items in every run, so that a run that was stopped
ends with the bytes of one that was not.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from a3jax.errors import UserError
from a3jax.generate.bulk import append, held
from a3jax.progress import Progress

_BEGIN = b'{"models": '


class Item(NamedTuple):
    """One thing that is evaluated."""

    id: str
    length: int
    """In tokens; items are taken by it."""
    content: Any
    """Whatever the task needs, as JSON values and tuples of them."""


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


def digest(items: Sequence[Item]) -> str:
    """SHA-256 of all items, contents included, in the order in which they are taken."""
    return hashlib.sha256(json.dumps(_by_length(items)).encode()).hexdigest()


def _by_length(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.length)


def run(task: Task, models: dict[str, Any], out: Path | None, batch: int) -> Rows:
    """Evaluate every item, `batch` at a time, and return all results, those that an earlier run left in `out` included.

    `models` says which they are. Raises `UserError` for a task without items, and for results of another evaluation.
    """
    if not task.items:
        left_out = ", ".join(f"{reason} {count}" for reason, count in task.data["left_out"].items())
        raise UserError(f"{task.data['source']}: nothing is left to evaluate ({left_out or 'it is empty'})")
    items = _by_length(task.items)
    if out is None:
        return _evaluate(task, items, [], batch, None)
    made_from = {"models": models, "data": {**task.data, "sha256": digest(items)}, "protocol": task.protocol}
    path = out / f"{task.name}.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; choose another place") from None
    with held(path) as file:
        done = _resumed(file, path, json.loads(json.dumps(made_from)))
        if len(done) < len(items):
            done = done[: len(done) // batch * batch]
        file.truncate(sum(map(len, path.read_bytes().splitlines(keepends=True)[: 1 + len(done)])))
        return _evaluate(task, items, done, batch, file)


def _evaluate(task: Task, items: Sequence[Item], done: Rows, batch: int, file: BinaryIO | None) -> Rows:
    rows = list(done)
    with Progress(task.name, len(items), "items", completed=len(rows)) as bar:
        for begin in range(len(rows), len(items), batch):
            chosen = items[begin : begin + batch]
            found = [{"id": item.id, **row} for item, row in zip(chosen, task.evaluate(chosen, min(batch, len(items))))]
            if file is not None:
                append(file, b"".join(json.dumps(row).encode() + b"\n" for row in found))
            rows += found
            bar.advance(len(found))
    return rows


def _resumed(file: BinaryIO, path: Path, made_from: dict[str, Any]) -> Rows:
    """The results that are there already, of which a torn last line is none. A new file gets its first line."""
    content = path.read_bytes()
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    if not lines and (content.startswith(_BEGIN) or _BEGIN.startswith(content)):
        file.truncate(0)
        append(file, json.dumps(made_from).encode() + b"\n")
        return []
    try:
        before, *rows = map(json.loads, lines)
        changed = [name for name in made_from if before[name] != made_from[name]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} holds no results of a3jax evaluate; choose another folder") from None
    if changed:
        raise UserError(f"{path} has results with other {' and '.join(changed)}; choose another folder, or remove it")
    return rows
