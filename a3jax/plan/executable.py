"""Compiled steps on disk: compiled once on any machine, loaded where the run begins.

    FOLDER/STAGE-PROGRAM.executable    what the compiler made (`jax.experimental.serialize_executable`)
    FOLDER/STAGE-PROGRAM.json          its fingerprint

A fingerprint holds what the executable depends on: the program as the compiler got it (the experiment, the model, the
batch and this package's own code all at once), the devices and their order, and the versions of JAX and libtpu. Loading
a serialized executable runs code, so load only what you saved.
"""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from a3jax.config import Stage, read, to_json
from a3jax.errors import UserError, first_line


@dataclass(frozen=True)
class Fingerprint:
    """What must be the same where an executable is loaded."""

    program: str
    """SHA-256 of the lowered program's text."""
    devices: str
    """SHA-256 of the kind and place of every device, in mesh order."""
    jax: str
    libtpu: str


def fingerprint(lowered: jax.stages.Lowered, mesh: Mesh) -> Fingerprint:
    """The fingerprint of a step lowered for a mesh."""
    places = [(d.device_kind, getattr(d, "coords", d.id), getattr(d, "core_on_chip", 0)) for d in mesh.devices.flat]
    return Fingerprint(_sha256(lowered.as_text()), _sha256(repr((mesh.shape, places))), jax.__version__, libtpu_version())


def libtpu_version() -> str:
    """Of the TPU compiler; "none" where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def save(folder: Path, stage: Stage, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, mesh: Mesh) -> Path:
    """Write one stage's step, the fingerprint last. Returns the file; raises `UserError` if it cannot be written."""
    facts = fingerprint(lowered, mesh)
    binary = _file(folder, stage, facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        binary.with_suffix(".json").unlink(missing_ok=True)
        binary.write_bytes(serialize_executable.serialize(compiled)[0])
        binary.with_suffix(".json").write_text(to_json(facts))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return binary


def load(folder: Path, stage: Stage, lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """The step of `stage` that `save` wrote, for the devices of `mesh`, in place of `lowered.compile()`.

    Raises `UserError` if there is none of this experiment, or if it is for other devices or versions.
    """
    now = fingerprint(lowered, mesh)
    binary = _file(folder, stage, now)
    if not binary.with_suffix(".json").is_file():
        raise UserError(f"{folder} has no step {stage.name} of this experiment as it is now; {_AGAIN}")
    saved = read(Fingerprint, binary.with_suffix(".json"))
    for name, what in _PARTS.items():
        before, here = getattr(saved, name), getattr(now, name)
        if before != here:
            values = f": {before}, not {here}" if name in ("jax", "libtpu") else ""
            raise UserError(f"{binary} was compiled for another {what}{values}; {_AGAIN}")
    devices = list(mesh.devices.flat)
    try:
        return serialize_executable.deserialize_and_load(
            binary.read_bytes(),
            lowered.in_tree,
            jax.tree.structure(lowered.out_info),
            backend=devices[0].client,
            execution_devices=devices,
        )
    except Exception as error:  # a damaged file can fail anywhere inside pickle or XLA
        raise UserError(f"{binary} is damaged ({first_line(error)}); {_AGAIN}") from None


_PARTS = {"program": "step", "devices": "mesh or other devices", "jax": "version of JAX", "libtpu": "version of libtpu"}
_AGAIN = "save it again with a3jax plan --save"


def _file(folder: Path, stage: Stage, facts: Fingerprint) -> Path:
    return folder / f"{stage.name}-{facts.program[:16]}.executable"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
