"""Whole weights, written to and read from a folder with a model in it: what the package does one parameter at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from a3jax.checkpoint.arrays import Form, ParameterWriter, flat, nested
from a3jax.checkpoint.folder import PARAMS, Checkpoint, damage_named, saved, write_description
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.files.folders import complete_or_nothing


def load_arrays(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its weights as a nested dict of numpy arrays, in the dtype in which they were saved. Raises as `load_params`."""
    parameters = saved(checkpoint)
    with damage_named(checkpoint):
        return nested({name: parameter.read() for name, parameter in parameters.items()})


def save_model(
    out: Path, config: ModelConfig, params: dict[str, Any], record: Provenance, tokenizer: dict[str, bytes]
) -> None:
    """Write a model folder from a nested dict of arrays; it appears under its name only when complete."""
    with complete_or_nothing(out) as partial:
        write_description(partial, config, record, tokenizer)
        arrays = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
        writer = ParameterWriter(partial / PARAMS, {name: Form(a.shape, a.dtype, 0) for name, a in arrays.items()})
        for name, array in arrays.items():
            writer.write(name, array)
