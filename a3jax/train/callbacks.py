"""What else happens while a run goes on: who calls `a3jax.fit` from Python looks on, and texts are filled to be looked at."""

from pathlib import Path
from typing import Any

from a3jax.config import Config
from a3jax.decode.template import has_open, parse
from a3jax.devices.processes import is_first
from a3jax.errors import UserError
from a3jax.generate.infill import infill
from a3jax.progress import console
from a3jax.weights.loading import Model


class Callback:
    """Looks on at a run; every method may be left as it is. Called in every process of a run that has several."""

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of `metrics.jsonl`, of a step or an evaluation, as it is written; in process 0 alone."""

    def evaluated(self, step: int, nll: dict[str, float], model: Model) -> None:
        """After an evaluation: held-out NLL by order, and the model as it is at that step.

        Its weights are those of the run, which the next step changes: use them here, and keep none.
        """

    def saved(self, step: int, run: Path) -> None:
        """After the weights of a step were handed over to be saved in the run folder."""


class Samples(Callback):
    """Fills one text at every evaluation and prints it."""

    def __init__(self, config: Config, template: str):
        """Raises `UserError` for a text in which nothing can be filled, and where no text is filled on the run's mesh."""
        self._template = parse(template)
        if config.mesh.context != 1:
            raise UserError(
                "train.sample fills a text, which mesh.context splits; leave it out, or take data, fsdp or tensor"
            )
        self._how = {"order": "random_1"} if config.objective == "a3" else {"mode": config.objective}
        if has_open(self._template.sizes) and config.objective != "fim":
            self._how = {}  # from left to right, as a blank without a size has to be

    def evaluated(self, step: int, nll: dict[str, float], model: Model) -> None:  # noqa: D102
        filled = infill(model, self._template, **self._how)
        marked = "".join(f"⟦{text}⟧" if new else text for text, new in filled.pieces)
        if is_first():
            console.print(f"step {step}: {marked}", soft_wrap=True)
