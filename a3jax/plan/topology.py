"""TPU topologies by name, and what one chip of each generation can do."""

import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from a3jax.errors import UserError, first_line
from a3jax.files.strict import nearest
from a3jax.plan.compiler import check_compiler
from a3jax.train import flops

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX shows it: a chip, or half of one on tpu7x, where each of two cores is a device."""

    hbm_bytes: int
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    """What a device can send over all its links together; data sheets give both directions together, twice this."""
    options: tuple[tuple[str, str], ...] = ()
    """What libtpu must be told to show devices as they are on real machines."""
    devices: int = 1
    """Into how many devices a chip is divided: what is sold, and counted in names, is whole chips."""


CHIPS = {
    "v4": Chip(32 * GIB, 1200e9, 300e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip(16 * GIB, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 1638e9, 400e9),
    "tpu7x": Chip(192 * GIB // 2, 7380e9 / 2, 600e9 / 2, devices=2),
}
"""From the data sheets at cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), and the links of v4 from Jouppi et al.,
arXiv 2304.01433. FLOP/s stand in `a3jax.train.flops`, which trains report by too."""


@dataclass(frozen=True)
class Topology:
    """A named arrangement of chips, with devices that can be compiled for but not run."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        """Their number."""
        return len(self.devices) // self.chip.devices

    @property
    def flops_per_second(self) -> float:
        """Peak of one device in bfloat16."""
        peak = flops.peak(self.devices[0])
        assert peak is not None, f"{self.devices[0].device_kind} is in CHIPS and not in flops.PEAK_BF16"
        return peak


def topology(name: str, slices: int = 1) -> Topology:
    """The topology `name`, such as v5p:4x4x4, or several of them that the data-centre network joins.

    Raises `UserError` for one that does not exist, or without libtpu.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", name)
    if not found:
        raise UserError(f"topology '{name}' is not of the form CHIP:AxB or CHIP:AxBxC, such as v5e:2x4 or v5p:4x4x4")
    kind, shape = found.groups()
    if kind not in CHIPS:
        raise UserError(f"topology '{name}': chip '{kind}' is unknown; chips are {', '.join(CHIPS)}{nearest(kind, CHIPS)}")
    check_compiler()
    # Without a TPU around it libtpu looks for what machine this is, in vain, and says so on standard error.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock guards chips, which stay untouched here
    sizes = [int(size) for size in shape.split("x")]
    host = [min(2, size) for size in sizes[:2]] + [1] * (3 - len(sizes[:2]))
    try:
        found = topologies.get_topology_desc(
            name, "tpu", num_slices=slices, chips_per_host_bounds=tuple(host), **dict(CHIPS[kind].options)
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology '{name}' cannot be had: {first_line(error)}") from None
    return Topology(name if slices == 1 else f"{slices} x {name}", CHIPS[kind], tuple(found.devices))
