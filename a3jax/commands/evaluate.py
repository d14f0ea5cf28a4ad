"""a3jax evaluate."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json
from a3jax.config import MeshConfig
from a3jax.errors import UserError
from a3jax.evaluate.options import Options
from a3jax.evaluate.tasks import NAMES, read_task
from a3jax.outside_text import show

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[NAMES]
ONE_DEVICE = MeshConfig(fsdp=1)


@dataclass(frozen=True)
class _What:
    """What comes before the options of tasks."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    tasks: tuple[Name, ...]
    """What to measure."""
    out: Path | None = None
    """Folder for the results: of every item as they come, and of all."""


@dataclass(frozen=True)
class Evaluate(Options, _What):
    """Measure a model: how well it predicts text in any order, what it fills into stories and code, how it continues texts,
    and how it answers the questions of data sets.

    a3jax evaluate runs/demo --tasks likelihood stories code --limit 100 --out results/demo

    a3jax evaluate runs/demo --tasks stories --stories cloze_test_val.csv --baseline models/smollm2 --out results/stories

    a3jax evaluate runs/demo --tasks hellaswag piqa triviaqa --data datasets --limit 20000 --out results/questions

    a3jax evaluate runs/demo --protocol diffullama --tasks hellaswag stories --data datasets --stories cloze_test_val.csv

    a3jax evaluate runs/demo --tasks continuation --text held_out.jsonl --judge models/llama --temperature 1

    The same command goes on where it was stopped, and gives the same numbers again.
    """

    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""
    mesh: MeshConfig = ONE_DEVICE
    """Several devices, as for a3jax train: weights are split, and batches over data and fsdp."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--tasks names what to measure, each once: {', '.join(NAMES)}")
        for name, least in {"limit": 1, "longest": 2, "batch": 1, "prompt_tokens": 1, "new_tokens": 1}.items():
            if not least <= getattr(self, name) <= 2**20:
                option, value = name.replace("_", "-"), getattr(self, name)
                raise UserError(f"--{option} is {value}; it must be at least {least} and at most {2**20}")
        self.decoding.checked()
        if self.mesh.context != 1 and self.tasks != ("likelihood",):
            raise UserError("--mesh.context splits windows of text, which only likelihood has; take data, fsdp or tensor")

        import jax

        from a3jax.devices.mesh import make_mesh
        from a3jax.evaluate.evaluation import evaluate
        from a3jax.evaluate.options import Models
        from a3jax.evaluate.results import print_tables
        from a3jax.weights.loading import load

        ready = [read_task(name, self) for name in self.tasks]  # what is wrong with the data is told before a model is loaded
        mesh = None if self.mesh == ONE_DEVICE else make_mesh(self.mesh)
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            model = load(self.checkpoint, self.dtype, self.step, mesh)
            baseline = model if self.baseline is None else load(self.baseline, self.dtype, mesh=mesh)
            judge = None if self.judge is None else load(self.judge, self.dtype, mesh=mesh)
            models = Models(model, baseline, judge)
            tasks = [make(models) for make in ready]
            results, tables = evaluate(tasks, models.by_role(), self.out, self.batch)
        results = {"checkpoint": str(self.checkpoint), "baseline": str(self.baseline or self.checkpoint), **results}
        if self.json:
            return results
        for task in tasks:
            counts = [f"{name.replace('_', ' ')} {count}" for name, count in task.data.items() if name != "left_out"]
            left_out = [f"{reason} {count}" for reason, count in task.data["left_out"].items()]
            show(f"{', '.join(counts)}{'; left out: ' if left_out else ''}{', '.join(left_out)}\n")
            print_tables(tables[task.name])
        return {} if self.out is None else {"out": str(self.out)}
