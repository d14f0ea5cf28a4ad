"""A model on disk: Orbax weights with the model configuration, tokenizer and record beside them.

    model.json, tokenizer.json, ...    what the weights are
    record.json                        what happened to them
    params/                            the weights (Orbax)                    in a model folder, or
    checkpoints/STEP/params/           the same                               in a run folder, one per saved step

Everything that takes a CHECKPOINT takes either. A model folder appears only when it is complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from a3jax.config import ModelConfig, read, to_json
from a3jax.errors import UserError, first_line
from a3jax.folders import complete_or_nothing
from a3jax.mesh import parameter_shardings
from a3jax.model.parameters import shapes
from a3jax.record import Record

MODEL, RECORD, PARAMS, STEPS = "model.json", "record.json", "params", "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """Where one set of weights lies, and what it is."""

    folder: Path
    """The model or run folder, with the tokenizer."""
    params: Path
    config: ModelConfig
    record: Record


def find(path: Path, step: int | None = None) -> Checkpoint:
    """Describe a model folder or a run folder (its newest step, or the one asked for) without loading weights."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a folder written by a3jax import or a3jax train")
    if not (path / MODEL).is_file():
        raise UserError(f"{path} has no {MODEL}; give a folder written by a3jax import or a3jax train")
    config = read(ModelConfig, path / MODEL)
    if (path / PARAMS).is_dir():
        return Checkpoint(path, path / PARAMS, config, read(Record, path / RECORD))
    steps = sorted(int(folder.name) for folder in (path / STEPS).glob("*") if folder.name.isdigit())
    if not steps:
        raise UserError(f"{path} holds no saved step yet")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no step {step}; it has {', '.join(map(str, steps))}")
    folder = path / STEPS / str(step or steps[-1])
    return Checkpoint(path, folder / PARAMS, config, read(Record, folder / "record" / "metadata"))


def load_params(checkpoint: Checkpoint, mesh: Mesh | None = None, dtype: str = "float32") -> nnx.State:
    """The weights, cast to `dtype`, laid over `mesh` or on one device. Raises `UserError` if they are another model's."""
    tree = shapes(checkpoint.config)
    if mesh is None:
        where = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), tree)
    else:
        where = parameter_shardings(tree, mesh)
    abstract = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s), tree, where)
    nnx.replace_by_pure_dict(tree, _restore(checkpoint, lambda _: nnx.to_pure_dict(abstract)))
    return tree


def load_arrays(checkpoint: Checkpoint) -> dict[str, Any]:
    """The weights as a nested dict of numpy arrays, in the dtype in which they were saved. Raises as `load_params`."""
    device = SingleDeviceSharding(jax.devices("cpu")[0])

    def as_saved(saved: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved)

    return jax.tree.map(np.asarray, _restore(checkpoint, as_saved))


def _restore(checkpoint: Checkpoint, abstract: Callable[[Any], Any]) -> Any:
    """Restore the tree that `abstract` makes of the saved metadata, if the model's shapes are the saved ones."""
    expected = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(shapes(checkpoint.config)))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(checkpoint.params.resolve()).item_metadata.tree
            if jax.tree.map(lambda leaf: tuple(leaf.shape), saved) != expected:
                model = checkpoint.folder / MODEL
                raise UserError(f"{checkpoint.params} does not hold the model of {model}; put the right one back")
            return checkpointer.restore(checkpoint.params.resolve(), abstract(saved))
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail anywhere inside Orbax
        where = checkpoint.params
        raise UserError(f"{where} is damaged ({first_line(error)}); take another checkpoint or import again") from None


def save_model(out: Path, config: ModelConfig, params: dict[str, Any], record: Record, tokenizer: dict[str, bytes]) -> None:
    """Write a model folder; it appears under its name only when complete."""
    with complete_or_nothing(out) as partial:
        (partial / MODEL).write_text(to_json(config))
        (partial / RECORD).write_text(to_json(record))
        for name, content in tokenizer.items():
            (partial / name).write_bytes(content)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((partial / PARAMS).resolve(), params)
