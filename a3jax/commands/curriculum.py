"""a3jax curriculum: an experiment's schedule as a picture, and what orders it draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3jax.commands.commandline import Json
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config
from a3jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CurriculumOptions:
    """The options of `a3jax curriculum` beside the fields of the experiment."""

    out: Path | None = None
    """A figure to write: .svg, .png or .pdf."""
    examples: int = 2
    """Example orders of each stage."""
    json: Json = False


@dataclass(frozen=True)
class Curriculum:
    """Look at the curriculum of an experiment; nothing else of it need be there."""

    config: Config
    options: CurriculumOptions

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Curriculum":
        """`EXPERIMENT [option ...] [--field value ...]`."""
        return cls(*parse_experiment(CurriculumOptions, args, prog, _HELP))

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.show.schedule import describe, draw, show

        options = self.options
        self.config.check_orders()
        if options.examples < 0:
            raise UserError(f"examples is {options.examples}; it must be at least 0")
        if options.out is not None:
            draw(self.config, options.out)
        out = str(options.out) if options.out is not None else None
        if options.json:
            return {"steps": self.config.steps, "stages": describe(self.config, options.examples), "out": out}
        show(self.config, options.examples)
        return {"out": out}


_HELP = """usage: a3jax curriculum EXPERIMENT [--out FILE] [--examples N] [--field value ...] [--json]

What an experiment's curriculum draws at which step: a bar for every order, the stages, and a sentence in example orders.
With --out also as a figure (.svg, .png, .pdf). Neither weights nor data need be there.

    a3jax curriculum tiny

    a3jax curriculum llama_8b --out schedule.svg --ar-share 0.1 --curriculum.3.ramp 500

The fields of an experiment:  a3jax curriculum EXPERIMENT --help"""
