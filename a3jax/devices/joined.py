"""Commands on several devices and hosts: one way in, for all that compute with a model.

Each process runs the same command, computes its part of everything, and knows every result. Process 0 alone prints and
writes (`a3jax.devices.writing`).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from a3jax.config import MeshConfig
from a3jax.devices.processes import Processes, connect, is_alone, is_first, meeting_at

if TYPE_CHECKING:  # a process forks before it imports JAX
    from jax.sharding import Mesh

ONE_DEVICE = MeshConfig(fsdp=1)


@dataclass(frozen=True)
class Devices(Processes):
    """Where a command computes."""

    mesh: MeshConfig = ONE_DEVICE
    """Several devices, as for a3jax train: weights are split, and batches over data and fsdp. One device if not given, or
    of several processes all, along fsdp."""


ALONE = Devices()


@contextlib.contextmanager
def joined(devices: Devices) -> "Iterator[Mesh | None]":
    """Inside, the processes of a command have found each other, and its mesh, if it has one, is in use.

    A process that is lost ends the others. Raises as `connect` and `make_mesh` do.
    """
    import jax

    from a3jax.devices.accelerators import check_used
    from a3jax.devices.agreement import barrier
    from a3jax.devices.liveness import Heartbeat, Liveness
    from a3jax.devices.mesh import make_mesh

    connect(devices)
    check_used()
    config = devices.mesh
    with contextlib.ExitStack() as stack:
        if not is_alone():
            if not is_first():
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if config == ONE_DEVICE:
                config = MeshConfig()
            alive = stack.enter_context(Liveness(Heartbeat.own()))
            barrier("heartbeats")
            meeting_at(alive.first)
            stack.enter_context(alive.watched())
        mesh = None if config == ONE_DEVICE else make_mesh(config)
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        yield mesh
