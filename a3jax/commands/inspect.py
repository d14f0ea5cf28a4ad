"""a3jax inspect: what a model, run, export or corpus is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json


@dataclass(frozen=True)
class Inspect:
    """Say what a model, run, export, corpus or GGUF file is, without loading it.

    a3jax inspect demo/run
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A model, run, Hugging Face, adapters or corpus folder, or a .gguf file."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.show.describe import describe

        return describe(self.path, self.step)
