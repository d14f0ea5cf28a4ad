"""What a run reads at every start and does not hold itself, to be known again: its corpora and the model that it learns from.

    RUN/inputs.json

Weights that a run leaves as they are have a file of their own (`a3jax.train.frozen`).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax

from a3jax.checkpoint.folder import Checkpoint, saved_steps
from a3jax.config import Config
from a3jax.data.corpus import digest
from a3jax.data.pipeline import Corpus
from a3jax.errors import UserError
from a3jax.files.strict import read
from a3jax.weights.pretrained import Pretrained, pretrained

INPUTS = "inputs.json"


@dataclass(frozen=True)
class Inputs:
    """What a run began with."""

    corpora: tuple[str, ...]
    """Their digests, in the order of the experiment's sources."""
    teacher: str | None = None
    """SHA-256 of the weights whose predictions it learns."""
    teacher_step: int | None = None
    """Which step of a run they are."""


def source_of(config: Config) -> Pretrained | None:
    """Where the weights come from, None for random ones. A run that learns from a step of another goes on with that step.

    Raises `UserError` for what is none, or not there any more.
    """
    if config.source is None:
        return None
    before = _before(config.run_folder)
    if before is None or before.teacher_step is None or not config.adapt.distill:
        return pretrained(config.source)
    try:
        return pretrained(config.source, before.teacher_step)
    except UserError as error:
        raise UserError(f"{config.run_folder} learns from step {before.teacher_step} of {config.source}: {error}") from None


def inputs_of(config: Config, corpora: tuple[Corpus, ...], source: Pretrained | None) -> Inputs:
    """What the run reads. Called in every process; process 0 alone reads the weights.

    Raises `UserError` where that is not what it began with.
    """
    teacher = source if config.adapt.distill else None
    sha256 = teacher.sha256 if teacher and jax.process_index() == 0 else None
    now = Inputs(tuple(digest(corpus.folder) for corpus in corpora), sha256, _step(teacher))
    if (before := _before(config.run_folder)) is None:
        return now
    for corpus, then, found in zip(corpora, before.corpora, now.corpora):
        if then != found:
            raise UserError(
                f"{corpus.folder} is not the corpus that {config.run_folder} began with, though it lies in the same place; "
                f"put that back, or give another --name or --run"
            )
    if before.teacher and sha256 and before.teacher != sha256:
        what = f"the SHA-256 of its weights is {sha256[:12]}..., not {before.teacher[:12]}..."
        raise UserError(f"{config.source} is not what {config.run_folder} learns from any more: {what}; put that back")
    return dataclasses.replace(now, teacher=before.teacher or sha256)


def _step(source: Pretrained | None) -> int | None:
    origin = source.origin if source else None
    return int(origin.params.parent.name) if isinstance(origin, Checkpoint) and origin.is_step else None


def _before(run: Path) -> Inputs | None:
    """What it began with; None before its first checkpoint, and of runs of older versions."""
    return read(Inputs, run / INPUTS) if saved_steps(run) and (run / INPUTS).is_file() else None
