"""a3jax plan: whether a run fits chips that are not here, and how fast it can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3jax.commands.commandline import Json
from a3jax.commands.experiment import parse_experiment
from a3jax.config import Config
from a3jax.errors import UserError
from a3jax.plan.compiler import check_compiler


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of `a3jax plan` beside the fields of the experiment."""

    topology: str
    """CHIP:AxB or CHIP:AxBxC, one of `mesh.slices`; chips are v4, v5e, v5p, v6e and tpu7x."""
    search: bool = False
    """Try meshes and batches instead, and rank those that fit."""
    batches: tuple[int, ...] = ()
    """Batches to search; the experiment's own, twice and four times that if not given."""
    limit: int = 12
    """How many a search compiles."""
    save: Path | None = None
    """A folder for the compiled steps."""
    price: float | None = None
    """Of a chip for an hour, in whatever currency: the plan then tells what the run costs."""
    json: Json = False

    def __post_init__(self) -> None:
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UserError(f"--price is {self.price}; it must be that of a chip for an hour, 0 or more")
        if self.price is not None and self.search:
            raise UserError("--price is of a plan, and --search makes none; leave one of them out")


@dataclass(frozen=True)
class Plan:
    """Whether a run fits a TPU topology, and how fast it can be; on any machine."""

    config: Config
    options: PlanOptions

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Plan":
        """`EXPERIMENT --topology CHIP:AxB [option ...] [--field value ...]`."""
        plan = cls(*parse_experiment(PlanOptions, args, prog, _PLAN_HELP))
        check_compiler()  # before JAX is imported, which takes seconds
        return plan

    def run(self) -> dict[str, Any]:  # noqa: D102
        import jax

        from a3jax.plan.search import search
        from a3jax.plan.show import show_plan, show_search
        from a3jax.plan.stages import plan
        from a3jax.plan.topology import topology

        options = self.options
        jax.config.update("jax_platforms", "cpu")  # a machine with TPUs need not give them up for a plan
        jax.config.update("jax_enable_compilation_cache", False)  # it cannot read back what is for absent devices
        chips = topology(options.topology, max(1, self.config.mesh.slices))
        if options.search:
            batch = self.config.data.batch
            found = search(self.config, chips, options.batches or (batch, 2 * batch, 4 * batch), options.limit)
            if not options.json:
                show_search(found, chips)
            ranked = [candidate.as_dict() for candidate in found]
            return {"topology": chips.name, "fits": any(not one.bytes_over for one in found), "ranked": ranked}
        planned = plan(self.config, chips, options.save)
        if not options.json:
            show_plan(planned, options.price)
            return {"saved": str(options.save) if options.save else None, "fits": planned.fits}
        return planned.as_dict(options.price)


_PLAN_HELP = """usage: a3jax plan EXPERIMENT --topology CHIP:AxB[xC] [--price N] [--save FOLDER] [--field value ...] [--json]
       a3jax plan EXPERIMENT --topology CHIP:AxB[xC] --search [--batches N ...] [--limit N] [--field value ...] [--json]

Whether a run fits a TPU topology, and how fast it can be. The step of every stage is compiled as it would be on the chips
(v4, v5e, v5p, v6e, tpu7x); this needs libtpu, not a TPU. Exit status 1 if it does not fit.

    a3jax plan llama_8b --topology v5p:4x4x4 --price 4.2        # of a chip for an hour

    a3jax plan llama_1b --topology v5e:4x4 --search --batches 64 128

The fields of an experiment:  a3jax plan EXPERIMENT --help"""
