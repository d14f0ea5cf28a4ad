"""No machine with accelerators computes on its CPU unasked, and what computes is told."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from a3jax.devices import accelerators
from a3jax.devices.accelerators import check_used, environment
from a3jax.devices.passing import Passing
from a3jax.errors import UserError

ROOT = Path(__file__).parents[2]


def machine(root: Path, *files: str, vendor: str = "0x8086") -> Path:
    """A machine that has these files below /dev, and one PCI device."""
    for file in files:
        path = root / "dev" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pci = root / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True)
    (pci / "vendor").write_text(f"{vendor}\n")
    return root


@pytest.fixture
def unasked(monkeypatch):
    """JAX has gone on with the CPU by itself; with the plugins that are given."""

    def make(*plugins: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in plugins else None)

    asked = jax.config.jax_platforms
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    jax.config.update("jax_platforms", None)
    yield make
    jax.config.update("jax_platforms", asked)


@pytest.mark.parametrize(
    ("files", "vendor", "plugin", "name"),
    [
        (["nvidia0", "nvidiactl"], "0x10de", "jax_cuda13_plugin", "NVIDIA GPUs"),
        (["accel0"], "0x8086", "libtpu", "TPUs"),
        (["vfio/0", "vfio/vfio"], "0x1ae0", "libtpu", "TPUs"),
    ],
)
def test_an_accelerator_that_is_not_used_is_an_error(files, vendor, plugin, name, unasked, tmp_path, monkeypatch):
    root = machine(tmp_path, *files, vendor=vendor)
    unasked()
    with pytest.raises(UserError, match=rf"has {name}, but JAX lacks their plugin: pip install .*JAX_PLATFORMS=cpu") as error:
        check_used(root)
    assert not isinstance(error.value, Passing)
    unasked(plugin)
    with pytest.raises(Passing, match=rf"the {name} of this machine did not start; run the same command again"):
        check_used(root)
    jax.config.update("jax_platforms", "cpu")
    check_used(root)
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_used(root)


@pytest.mark.parametrize("files", [["nvidiactl"], ["accel/accel0"], ["vfio/0"], []])
def test_other_devices_are_none(files, unasked, tmp_path):
    """Such as a control file in a container without a GPU, another maker's accelerator, or a network card."""
    unasked()
    check_used(machine(tmp_path, *files))


def test_what_computes_is_told(monkeypatch):
    assert environment() == f"JAX {jax.__version__}, {jax.device_count()} x cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(accelerators, "libtpu_version", lambda: "0.0.1")
    assert ", libtpu 0.0.1, " in environment()


@pytest.mark.parametrize("file", ["constraints-tpu.txt", "constraints-cuda.txt"])
def test_constraints_pin_what_the_tested_jax_asks_for(file):
    lines = (ROOT / "launch" / file).read_text().splitlines()
    pins = {one.name: one for line in lines if line and line[0].isalpha() for one in [Requirement(line)]}
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    tested = {canonicalize_name(name): version for name, version in found}
    assert "-c ../requirements.txt" in lines
    extra = "tpu" if "tpu" in file else "cuda13"
    wanted = [Requirement(line) for line in importlib.metadata.requires("jax") if f'extra == "{extra}"' in line]
    for one in wanted:
        if one.name in pins:
            (pin,) = pins[one.name].specifier
            assert Version(pin.version) in one.specifier, "of another JAX"
    assert any(one.name in pins for one in wanted)
    project = (ROOT / "pyproject.toml").read_text()
    for line in re.search(r"^dependencies = \[(.*?)\]\n", project, re.MULTILINE | re.DOTALL)[1].splitlines():
        if line.strip():
            one = Requirement(line.strip().strip('",'))
            assert Version(tested[canonicalize_name(one.name)]) in one.specifier
