"""Several checkpoints evaluated one after another, each into a folder of its own, and compared by what is there then."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from a3jax.devices.writing import by_first
from a3jax.errors import UserError
from a3jax.evaluate.candidates import COMPARISON, REPORT, RESULTS, Candidate
from a3jax.evaluate.comparison import Compared, check, check_before, compare, document
from a3jax.evaluate.report import Contents, comparison_report
from a3jax.evaluate.results_folder import Evaluation, read
from a3jax.evaluate.task import Task
from a3jax.files.folders import check_ours, write_whole
from a3jax.outside_text import say

Evaluates = Callable[[Candidate, Path, Callable[[Sequence[Task]], None]], Sequence[Task]]
"""Runs the tasks of a checkpoint into a folder once the third argument has seen them, and returns them."""


def evaluate_several(
    named: Sequence[Candidate],
    tasks: Sequence[str],
    out: Path | None,
    evaluate: Evaluates,
    tell: Callable[[Sequence[Compared]], None],
) -> dict[str, Any]:
    """Evaluate the checkpoints among `named`, into OUT/NAME, and return how all compare with the first, as `document` does.

    Process 0 compares, and is the one to `tell`. `COMPARISON` and its page go in `out`. Raises `UserError` where results
    cannot be compared, before anything is evaluated if it is known then, and for files that are somebody else's.
    """
    new = [each for each in named if not each.is_results]
    if new and out is None:
        raise UserError("several checkpoints need --out: each has a folder in it, and they are compared by what is there")
    known: dict[str, Evaluation] = {}
    contents: Contents = {}

    def keep(name: str, path: Path) -> None:
        known[name] = read(name, path, tasks)

    def begin() -> None:
        if out is not None:
            _check(out)
        for each in named:
            if each.is_results:
                keep(each.name, each.path)
        check(list(known.values()))

    def end() -> dict[str, Any]:
        evaluations = [known[each.name] for each in named]
        compared = compare(evaluations)
        results = document(evaluations, compared)
        if out is not None:
            write_whole(out / COMPARISON, json.dumps(results, indent=1) + "\n")  # first: the page is known by it
            write_whole(out / REPORT, comparison_report(results, compared, contents))
        tell(compared)
        return results

    by_first(begin)
    for number, each in enumerate(new, 1):
        assert out is not None
        say(f"{each.name}, {number} of {len(new)}")
        seen = functools.partial(check_before, each.name, known=list(known.values()))
        ran = evaluate(each, out / each.name, seen)
        contents = contents or {task.name: {item.id: item.content for item in task.items} for task in ran}
        by_first(functools.partial(keep, each.name, out / each.name))
    return by_first(end)


def _check(out: Path) -> None:
    """Raise `UserError` for a folder where a comparison would write over what is somebody else's, or an evaluation's."""
    check_ours(out / COMPARISON, '{\n "compared": ')
    for name in (RESULTS, REPORT):
        if (out / name).exists() and not (out / COMPARISON).exists():
            raise UserError(f"{out / name} is there and no comparison beside it; choose another folder")
