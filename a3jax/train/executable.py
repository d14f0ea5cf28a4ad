"""Compiled steps on disk: compiled once on any machine (`a3jax plan --save`), loaded where the run begins.

    FOLDER/STAGE-KIND.executable    what the compiler made (`jax.experimental.serialize_executable`)
    FOLDER/STAGE-KIND.json          its fingerprint

KIND is a hash of all that makes a stage another one but its number of steps. The fingerprint holds what an executable
depends on: the experiment, the devices and their order, the versions of JAX and libtpu, and a hash of the program as the
compiler got it, which covers this package's own code too. Loading one runs what is in it: load only what you saved.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.devices.accelerators import libtpu_version
from a3jax.errors import UserError, first_line
from a3jax.files.strict import flat, read, to_json


@dataclass(frozen=True)
class Fingerprint:
    """What must be the same where an executable is loaded."""

    jax: str
    libtpu: str
    devices: str
    """The mesh and the kind of its devices, in words."""
    places: str
    """SHA-256 of the place of every device, in mesh order."""
    program: str
    """SHA-256 of the lowered program's text."""
    config: Config
    """To say what differs where the program does."""


def fingerprint(config: Config, model: ModelConfig, lowered: jax.stages.Lowered, mesh: Mesh) -> Fingerprint:
    """The fingerprint of a step lowered for a mesh."""
    places = [(getattr(device, "coords", device.id), getattr(device, "core_on_chip", 0)) for device in mesh.devices.flat]
    return Fingerprint(
        jax=jax.__version__,
        libtpu=libtpu_version(),
        devices=" x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()) + f" of {mesh.devices.flat[0].device_kind}",
        places=_sha256(repr(places)),
        program=_sha256(lowered.as_text()),
        config=dataclasses.replace(config, model=model),
    )


def save(folder: Path, stage: Stage, facts: Fingerprint, compiled: jax.stages.Compiled) -> Path:
    """Write one stage's step, the fingerprint last. Returns the file; raises `UserError` if it cannot be written."""
    binary = _file(folder, stage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        binary.with_suffix(".json").unlink(missing_ok=True)
        binary.write_bytes(serialize_executable.serialize(compiled)[0])
        binary.with_suffix(".json").write_text(to_json(facts))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return binary


def load(folder: Path, stage: Stage, facts: Fingerprint, lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """The step of `stage` that `save` wrote, for the devices of `mesh`, in place of `lowered.compile()`.

    Raises `UserError`, naming what differs, if it is not there, or for another program, other devices or versions.
    """
    binary = _file(folder, stage)
    if not binary.with_suffix(".json").is_file():
        raise UserError(f"{folder} has no step for the stage {stage.name} of this experiment; {_AGAIN}")
    saved = read(Fingerprint, binary.with_suffix(".json"))
    if saved != facts and (what := _difference(saved, facts)):
        raise UserError(f"{binary} was compiled for {what}; {_AGAIN}")
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


def _difference(saved: Fingerprint, here: Fingerprint) -> str | None:
    """The first thing that makes the saved step another one; None where all that differs is no part of a step."""
    for name, what in (("jax", "JAX "), ("libtpu", "libtpu "), ("devices", "")):
        before, now = getattr(saved, name), getattr(here, name)
        if before != now:
            return f"{what}{before}, not {now}"
    if saved.places != here.places:
        return "devices in other places"
    if saved.program == here.program:
        return None
    before, now = (dict(flat(dataclasses.asdict(facts.config))) for facts in (saved, here))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name.startswith(_IN_PROGRAM):
            return f"{name} = {before.get(name)}, not {now.get(name)}"
    return "another version of a3jax"


_IN_PROGRAM = ("seed", "content", "model", "objective", "data.length", "data.batch", "curriculum", "optimizer", "adapt",
               "diffusion", "fim", "guard.spike", "train.compute_dtype",
               "train.attention", "train.remat", "train.accumulate", "train.loss_chunk")  # fmt: skip
"""Fields that a step depends on, or their beginnings; those of the mesh are among the devices."""
_AGAIN = "save it again with a3jax plan --save, or leave out train.executables"


def _file(folder: Path, stage: Stage) -> Path:
    return folder / f"{stage.name}-{_sha256(repr(stage.program))[:8]}.executable"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
