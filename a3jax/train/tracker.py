"""A run's metrics in a project of Weights & Biases (https://wandb.ai), where they are asked for: `train.wandb`.

Weights & Biases only shows: what it cannot do is said once, and the run goes on. A resumed run goes on in the same one there,
which `RUN/wandb/id` names. What a resumed run does again it has twice, the later being what counts: it cannot take back.
"""

import contextlib
import dataclasses
import secrets
from collections.abc import Iterator
from typing import Any

from a3jax.config import Config
from a3jax.errors import UserError, first_line
from a3jax.outside_text import say

FOLDER = "wandb"
"""In the run folder: what is not sent yet, or is never sent (`WANDB_MODE=offline`; `wandb sync` sends it later)."""


class Tracker:
    """Takes what `metrics.jsonl` takes. Nothing is imported, and nothing done, where `train.wandb` names no project."""

    def __init__(self, config: Config):
        """Raises `UserError` where wandb is not installed, or does not know who the user is."""
        self._run: Any = None
        if config.train.wandb is not None:
            self._begin(config, config.train.wandb)

    def write(self, **values: Any) -> None:
        """Numbers of one step; `step` must be among them, anything but numbers is left out."""
        if self._run is not None:
            with self._going_on():
                self._run.log({name: value for name, value in values.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """Send what is left, and end."""
        if self._run is not None:
            with self._going_on():
                self._run.finish()

    def _begin(self, config: Config, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(f"train.wandb is {project}, but wandb is not installed; pip install 'a3jax[wandb]'") from None
        with self._going_on():
            try:
                self._run = wandb.init(
                    project=project,
                    name=config.name,
                    id=_identity(config),
                    resume="allow",
                    dir=str(config.run_folder),
                    config=dataclasses.asdict(config),
                    settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True),
                )
            except wandb.errors.UsageError as error:
                raise UserError(f"train.wandb: {first_line(error)}; or set WANDB_MODE=offline") from None
            self._run.define_metric("*", step_metric="step")  # its own count cannot go back, where a run may

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What Weights & Biases cannot do is said, and it is left alone from then on."""
        import wandb

        try:
            yield
        except (wandb.errors.Error, OSError) as error:
            say(f"Weights & Biases is shown nothing more ({first_line(error)}); the run does not need it, and goes on")
            self._run = None


def _identity(config: Config) -> str:
    """What the run is called there, the same at every start."""
    file = config.run_folder / FOLDER / "id"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text()
