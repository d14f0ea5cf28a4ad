"""a3jax evaluate."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import PLAIN, Json, Loads
from a3jax.devices.joined import joined
from a3jax.errors import UserError
from a3jax.evaluate.candidates import Candidate, candidates
from a3jax.evaluate.options import Options
from a3jax.evaluate.tasks import NAMES, read_task
from a3jax.outside_text import show

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from a3jax.evaluate.results import Tables
    from a3jax.evaluate.task import Task

    Name = str
else:
    Name = Literal[NAMES]


@dataclass(frozen=True)
class _What:
    """What comes before the options of tasks."""

    checkpoints: Annotated[Positional[tuple[Path, ...]], arg(metavar="CHECKPOINT ...", help_behavior_hint="")]
    """A model folder, a run folder, or what a3jax import takes. Several are compared with the first, and may be folders of
    results that are there already."""
    tasks: tuple[Name, ...] = ()
    """What to measure; of results that are there, what to compare."""
    out: Path | None = None
    """Folder for the results: of every item as they come, and of all. Of several checkpoints each has a folder in it."""


@dataclass(frozen=True)
class Evaluate(Options, _What):
    """Measure a model: how well it predicts text in any order, what it fills into stories and code, whether that code works,
    how it continues texts, and how it answers the questions of data sets.

    a3jax evaluate demo/run --tasks likelihood stories code --limit 100 --out results/demo

    a3jax evaluate demo/run --tasks stories --stories cloze_test_val.csv --baseline demo/smollm2 --out results/stories

    a3jax evaluate demo/run --tasks hellaswag piqa triviaqa --data datasets --limit 20000 --out results/questions

    a3jax evaluate demo/run --tasks humaneval_infill --data HumanEval-SingleLineInfilling.jsonl.gz --execute confined

    a3jax evaluate demo/run --protocol diffullama --tasks hellaswag stories --data datasets --stories cloze_test_val.csv

    a3jax evaluate demo/run --tasks continuation --text held_out.jsonl --judge models/llama --temperature 1

    a3jax evaluate demo/smollm2 demo/run --tasks likelihood stories code --out results/compared

    a3jax evaluate results/greedy results/drawn --out results/decoding

    The same command goes on where it was stopped, and gives the same numbers again.
    """

    loading: Loads = PLAIN
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        named = candidates(self.checkpoints)
        if any(not each.is_results for each in named):
            self._check()
        if not named or (len(named) == 1 and named[0].is_results):
            raise UserError("there is nothing to evaluate or to compare; name a CHECKPOINT, or several folders of results")
        if all(each.is_results for each in named):  # for which no device is needed
            return self._compare(named, None)
        with joined(self.loading.devices) as mesh:
            return self._compare(named, mesh) if len(named) > 1 else self._one(named[0].path, mesh)

    def _one(self, checkpoint: Path, mesh: "Mesh | None") -> dict[str, Any]:
        """Evaluate one checkpoint."""
        tasks, results, tables = self._evaluate(checkpoint, self.out, mesh)
        if self.json:
            return results
        from a3jax.evaluate.results import counted, print_tables

        for task in tasks:
            show(f"{counted(task.data)}\n")
            print_tables(tables[task.name])
        return {} if self.out is None else {"out": str(self.out)}

    def _check(self) -> None:
        """Raise `UserError` for options by which nothing can be measured."""
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--tasks names what to measure, each once: {', '.join(NAMES)}")
        for name, least in {"limit": 1, "longest": 2, "batch": 1, "prompt_tokens": 1, "new_tokens": 1}.items():
            if not least <= getattr(self, name) <= 2**20:
                option, value = name.replace("_", "-"), getattr(self, name)
                raise UserError(f"--{option} is {value}; it must be at least {least} and at most {2**20}")
        self.decoding.checked()
        if self.loading.devices.mesh.context != 1 and self.tasks != ("likelihood",):
            raise UserError("--mesh.context splits windows of text, which only likelihood has; take data, fsdp or tensor")

    def _evaluate(
        self,
        checkpoint: Path,
        out: Path | None,
        mesh: "Mesh | None",
        check: "Callable[[Sequence[Task]], None]" = lambda tasks: None,
    ) -> "tuple[Sequence[Task], dict[str, Any], dict[str, Tables]]":
        """The tasks of one checkpoint, its results and its tables. `check` sees the tasks before they are run."""
        from a3jax.devices.writing import by_first
        from a3jax.evaluate.evaluation import evaluate
        from a3jax.evaluate.options import Models

        ready = [read_task(name, self) for name in self.tasks]  # what is wrong with the data is told before a model is loaded
        model = self.loading.model(checkpoint, mesh)
        newest = dataclasses.replace(self.loading, step=None)  # the step asked for is that of the checkpoint
        baseline = model if self.baseline is None else newest.model(self.baseline, mesh)
        judge = None if self.judge is None else newest.model(self.judge, mesh)
        models = Models(model, baseline, judge)
        tasks = [make(models) for make in ready]
        by_first(lambda: check(tasks))
        results, tables = evaluate(tasks, models.by_role(), out, self.batch)
        return tasks, {"checkpoint": str(checkpoint), "baseline": str(self.baseline or checkpoint), **results}, tables

    def _compare(self, named: Sequence[Candidate], mesh: "Mesh | None") -> dict[str, Any]:
        """Evaluate the checkpoints, each into a folder of its own, and compare what is there then."""
        from a3jax.evaluate.comparison import print_comparison
        from a3jax.evaluate.several import evaluate_several
        from a3jax.weights.pretrained import pretrained

        for each in named:  # what is no checkpoint is told before any is evaluated
            if not each.is_results:
                pretrained(each.path, self.loading.step)
        compared = evaluate_several(
            named,
            self.tasks,
            self.out,
            lambda each, out, check: self._evaluate(each.path, out, mesh, check)[0],
            (lambda _: None) if self.json else print_comparison,
        )
        if self.json:
            return compared
        return {} if self.out is None else {"out": str(self.out)}
