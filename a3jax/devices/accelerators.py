"""What computes: the devices that JAX has found, and those of the machine that it has not, for which it says nothing.

JAX goes on with the CPU where an accelerator's plugin is missing, or does not start. Nobody means that.
"""

import importlib.metadata
import importlib.util
from collections import Counter
from pathlib import Path
from typing import NamedTuple, cast

import jax

from a3jax.devices.passing import Passing
from a3jax.errors import UserError


class Kind(NamedTuple):
    """Accelerators that Linux shows."""

    name: str
    files: tuple[str, ...]
    """One of them is there for each, below /dev."""
    plugins: tuple[str, ...]
    """Modules, one of which JAX needs for them."""
    install: str


KINDS = (
    Kind("TPUs", ("accel[0-9]*", "vfio/[0-9]*"), ("libtpu",), "pip install -c launch/constraints-tpu.txt '.[tpu]'"),
    Kind(
        "NVIDIA GPUs",
        ("nvidia[0-9]*",),
        ("jax_cuda13_plugin", "jax_cuda12_plugin"),
        "pip install -c launch/constraints-cuda.txt '.[cuda]'",
    ),
)
_GOOGLE = "0x1ae0"
"""The maker of what lies behind /dev/vfio, if that is a TPU; others use it too."""


def check_used(root: Path = Path("/")) -> None:
    """Raise an error where JAX computes on the CPU of a machine with accelerators, unless JAX_PLATFORMS asks for the CPU.

    `UserError` where their plugin is not installed, `Passing` where they did not start. Starts the devices.
    """
    platforms: str = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    if jax.default_backend() != "cpu" or "cpu" in platforms.split(","):
        return
    for kind in KINDS:
        if not _there(kind, root):
            continue
        cpu = "to compute on the CPU, set JAX_PLATFORMS=cpu"
        if not any(importlib.util.find_spec(plugin) for plugin in kind.plugins):
            raise UserError(f"this machine has {kind.name}, but JAX lacks their plugin: {kind.install}; {cpu}")
        raise Passing(f"the {kind.name} of this machine did not start; run the same command again; {cpu}")


def platform() -> str:
    """The platform that the program is traced for: the mesh's, whose devices need not be present, else the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return cast(str, device.platform if device else jax.default_backend())


def compute_capability() -> str | None:
    """What this machine's GPUs can do, such as "9.0" (other makers' have names instead); None if there is none to ask."""
    return str(jax.local_devices()[0].compute_capability) if jax.default_backend() == "gpu" else None


def _there(kind: Kind, root: Path) -> bool:
    for pattern in kind.files:
        if any((root / "dev").glob(pattern)) and (not pattern.startswith("vfio") or _has_google(root)):
            return True
    return False


def _has_google(root: Path) -> bool:
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(file.read_text().strip() == _GOOGLE for file in vendors)


def environment() -> str:
    """What computes, in words: versions of JAX and libtpu, and all devices by kind. Starts them."""
    kinds = Counter(device.device_kind for device in jax.devices())
    devices = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    versions = [f"JAX {jax.__version__}"]
    if jax.default_backend() == "tpu":
        versions.append(f"libtpu {libtpu_version()}")
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{', '.join(versions)}, {devices}{processes}"


def libtpu_version() -> str:
    """Of the TPU compiler; "none" where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"
