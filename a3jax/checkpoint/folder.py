"""A model on disk: Orbax weights with the model configuration, tokenizer and record beside them.

    model.json, tokenizer.json, ...    what the weights are
    record.json                        what happened to them
    params/                            the weights (Orbax)                    in a model folder, or
    checkpoints/STEP/params/           the same                               in a run folder, one per saved step
    frozen.json                        which of them lie in the run's source, where a run saves what it trains alone

Everything that takes a CHECKPOINT takes either. A model folder appears only when it is complete. What this module reads of a
checkpoint are the weights that it holds itself; `a3jax.weights.whole` and `a3jax.weights.pretrained` add the others.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from a3jax.checkpoint.arrays import (
    SavedParameter,
    flat,
    in_one_piece,
    laid_out,
    nested,
    saved_parameters,
)
from a3jax.checkpoint.checksums import array_sums
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.devices.mesh import parameter_shardings
from a3jax.devices.replicas import read_once
from a3jax.errors import UserError, first_line
from a3jax.files.folders import is_passing
from a3jax.files.outside_json import read_object
from a3jax.files.parts import PARTS, check_whole
from a3jax.files.places import is_local, place
from a3jax.files.strict import read, to_json
from a3jax.model.parameters import named, shapes

MODEL, RECORD, PARAMS, STEPS, FROZEN = "model.json", "record.json", "params", "checkpoints", "frozen.json"
ADAPTERS = "adapters.json"
"""Of a folder that holds adapters alone (`a3jax.weights.adapter_files`)."""
CHECKSUMS = "checksums"
"""Of a run's step, beside its `PARAMS`."""
CONFIG = "config.json"
"""Of a run folder: the experiment. A published model has a file of that name too."""
_WHOLE = ("commit_success.txt", PARTS)
"""In a bucket, where nothing is renamed, what Orbax or we write last into a step."""


@dataclass(frozen=True)
class Frozen:
    """Weights that a run leaves as they are, and that its checkpoints therefore need not hold."""

    source: str
    """Where they lie: what the run started from."""
    sha256: str
    """Of all weights there (`a3jax.weights.pretrained.Pretrained.sha256`)."""
    parameters: tuple[str, ...]
    """Which they are, by dotted path."""


@dataclass(frozen=True)
class Checkpoint:
    """Where one set of weights lies, and what it is."""

    folder: Path
    """The model or run folder, with the tokenizer."""
    params: Path
    config: ModelConfig
    record: Provenance
    frozen: Frozen | None = None
    """Of a run folder, what `params` may lack."""

    @property
    def is_step(self) -> bool:
        """Whether it is a step of a run, which is removed when others have come."""
        return self.params.parent != self.folder


def find(path: Path, step: int | None = None) -> Checkpoint:
    """Describe a model folder or a run folder (its newest step, or the one asked for) without loading weights."""
    path = place(path)
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a folder written by a3jax import or a3jax train")
    if not (path / MODEL).is_file():
        refuse_adapters(path)
        raise UserError(f"{path} has no {MODEL}; give a folder written by a3jax import or a3jax train")
    check_whole(path)
    config = read(ModelConfig, path / MODEL)
    if (path / PARAMS).is_dir():
        return Checkpoint(path, path / PARAMS, config, read(Provenance, path / RECORD))
    steps = saved_steps(path)
    if not steps:
        raise UserError(f"{path} holds no saved step yet")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no step {step}; it has {', '.join(map(str, steps))}")
    folder = path / STEPS / str(step or steps[-1])
    frozen = read(Frozen, path / FROZEN) if (path / FROZEN).is_file() else None
    return Checkpoint(path, folder / PARAMS, config, read(Provenance, folder / "record" / "metadata"), frozen)


def refuse_adapters(path: Path) -> None:
    """Raises `UserError` for adapters without the weights that they change, which are no model yet."""
    if (path / ADAPTERS).is_file():
        put = f"a3jax import SOURCE MODEL --adapters {path}"
        raise UserError(f"{path} holds adapters alone; put them on the weights that they were trained on: {put}")


def saved_steps(run: Path) -> list[int]:
    """The steps that a run folder holds whole, oldest first."""
    steps = sorted(int(folder.name) for folder in (run / STEPS).glob("*") if folder.name.isdigit())
    return (
        steps
        if is_local(run)
        else [step for step in steps if any((run / STEPS / str(step) / name).is_file() for name in _WHOLE)]
    )


def load_params(checkpoint: Checkpoint, mesh: Mesh | None = None, dtype: str = "float32") -> nnx.State:
    """Its weights, cast to `dtype`, laid over `mesh` or on one device.

    Those of a run's step that are in memory as they were saved are compared with its checksums; a model folder's files have
    their own. Raises `UserError` if they are another model's, or damaged.
    """
    parameters = saved(checkpoint)
    tree = nnx.filter_state(shapes(checkpoint.config), named(parameters))
    abstract = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s), tree, layout(tree, mesh))

    def read(asked: Mapping[str, Any]) -> Mapping[str, jax.Array]:
        with damage_named(checkpoint):
            # Wait, or parameters whose copy to the device is under way would add up.
            return {name: _laid_out(parameters[name], form).block_until_ready() for name, form in asked.items()}

    nnx.replace_by_pure_dict(tree, nested(read_once(flat(nnx.to_pure_dict(abstract)), read)))
    if checkpoint.is_step and all(parameter.dtype == dtype for parameter in parameters.values()):
        _check_sums(checkpoint, tree)
    return tree


def _check_sums(checkpoint: Checkpoint, params: nnx.State) -> None:
    """Raises `UserError` unless the weights are those that a run's step was saved with."""
    with damage_named(checkpoint):
        saved_sums = read_object(checkpoint.params.parent / CHECKSUMS / "metadata")
        for name, value in array_sums((params,)).items():
            if saved_sums.get(name) != value:
                raise ValueError(f"{name} is not what was saved")


def _laid_out(parameter: SavedParameter, form: jax.ShapeDtypeStruct) -> jax.Array:
    assert form.sharding is not None
    read = in_one_piece(form.shape, form.sharding, lambda index: parameter.part(index, form.dtype.name))
    return laid_out(form.shape, form.sharding, read)


def layout(tree: nnx.State, mesh: Mesh | None) -> nnx.State:
    """A sharding for every leaf of a parameter tree: over `mesh`, or on one device."""
    if mesh is None:
        return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), tree)
    return parameter_shardings(tree, mesh)


def saved(checkpoint: Checkpoint) -> dict[str, SavedParameter]:
    """Its weights by dotted path, to be read one at a time inside `damage_named`. Raises as `load_params`.

    They are all of the model, or all but the frozen ones.
    """
    with damage_named(checkpoint):
        parameters = saved_parameters(checkpoint.params)
    expected = {name: leaf.shape for name, leaf in flat(nnx.to_pure_dict(shapes(checkpoint.config))).items()}
    frozen = checkpoint.frozen.parameters if checkpoint.frozen else ()
    own = {name: shape for name, shape in expected.items() if name not in frozen}
    if {name: parameter.shape for name, parameter in parameters.items()} not in (expected, own):
        model = checkpoint.folder / MODEL
        raise UserError(f"{checkpoint.params} does not hold the model of {model}; put the right one back")
    return parameters


def lacking(checkpoint: Checkpoint, own: Collection[str]) -> tuple[str, ...]:
    """Which weights of a checkpoint that has its `own` lie elsewhere, by dotted path."""
    return tuple(name for name in (checkpoint.frozen.parameters if checkpoint.frozen else ()) if name not in own)


@contextlib.contextmanager
def damage_named(checkpoint: Checkpoint) -> Iterator[None]:
    """Whatever Orbax and TensorStore raise for a damaged file becomes a `UserError` that names the checkpoint."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_passing(error):
            raise
        where = checkpoint.params
        raise UserError(f"{where} is damaged ({first_line(error)}); take another checkpoint or import again") from None


def write_description(folder: Path, config: ModelConfig, record: Provenance, tokenizer: dict[str, bytes]) -> None:
    """Write everything of a model folder except the weights."""
    (folder / MODEL).write_text(to_json(config))
    (folder / RECORD).write_text(to_json(record))
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
