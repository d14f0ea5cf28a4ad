"""What a run's checkpoints need not hold: weights that it leaves as they are, and that its source holds for good.

    RUN/frozen.json    where they lie, their SHA-256, and which they are

With adapters that is all but a few hundredths of the weights. A source is relied on as long as its files are what they were
when the run began, which is looked at whenever they are needed.
"""

import dataclasses
from pathlib import Path

import jax

from a3jax.checkpoint.folder import FROZEN, Checkpoint, Frozen, saved_steps
from a3jax.config import Config, ModelConfig
from a3jax.errors import UserError
from a3jax.files.strict import read
from a3jax.model.parameters import declarations
from a3jax.train.trained import changes
from a3jax.weights.pretrained import Pretrained, frozen_source


def frozen_weights(config: Config, model: ModelConfig, source: Pretrained | None) -> Frozen | None:
    """What the checkpoints of a run need not hold; None where they hold all, which a run that began so goes on with.

    Called in every process; process 0 alone reads the weights. Raises `UserError` if the source is not the one that the run
    began with.
    """
    file, first = config.run_folder / FROZEN, jax.process_index() == 0
    if source is None:
        return None
    if saved_steps(config.run_folder):
        if not file.is_file():
            return None
        frozen = read(Frozen, file)
        theirs = source.origin.frozen if isinstance(source.origin, Checkpoint) else None
        if theirs is None:
            frozen = dataclasses.replace(frozen, source=_place(config, source))
        elif theirs.sha256 != frozen.sha256:
            began = f"{config.run_folder} was trained from other weights than {source.folder}, which lie in {frozen.source}"
            raise UserError(f"{began}; go on with the --source that it began with")
        if first:
            frozen_source(frozen, config.run_folder)
        return frozen
    parameters = _left_as_they_are(config, model, source)
    if config.train.save == "whole" or not parameters:
        return None
    if isinstance(source.origin, Checkpoint) and source.origin.is_step:  # these come and go; what they lack themselves stays
        theirs = source.origin.frozen
        whole = theirs is not None and set(parameters) <= set(theirs.parameters)
        return dataclasses.replace(theirs, parameters=parameters) if theirs is not None and whole else None
    return Frozen(_place(config, source), source.sha256 if first else "", parameters)


def _place(config: Config, source: Pretrained) -> str:
    """Where the source lies, from whichever folder a command is given; a name of the hub stays one."""
    return str(source.folder.resolve()) if Path(config.source or "").exists() else str(config.source)


def _left_as_they_are(config: Config, model: ModelConfig, source: Pretrained) -> tuple[str, ...]:
    """The weights of the source that never change, but for query seeds: they may begin as something else, and are small."""
    changed, theirs = changes(config.adapt, model), declarations(source.config)
    ours = ((path, it.kind) for path, it in declarations(model).items() if path in theirs)
    return tuple(path for path, kind in ours if kind != "seed" and not changed(tuple(path.split(".")), None))
