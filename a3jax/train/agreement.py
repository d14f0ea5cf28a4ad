"""Stopping together: a signal reaches the processes of a run at different times, and they must end with the same step."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class AgreedStop:
    """Turns what signals each process has caught into one answer, read a step late, as the metrics are."""

    def __init__(self, mesh: Mesh, caught: Callable[[], int]):
        self._caught, self.alone = caught, jax.process_count() == 1
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        together = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(
            lambda flags, after: jax.lax.optimization_barrier((flags, after))[0].max(), out_shardings=together
        )
        self._pending: Array | None = None
        self.agreed = 0
        """The signal that the processes have agreed to stop for, or 0."""

    def now(self) -> int:
        """The signal that some process has caught, or 0; waits for all of them."""
        if not self.agreed:
            caught = self._caught()
            self.agreed = caught if self.alone else int(multihost_utils.process_allgather(np.int32(caught)).max())
        return self.agreed

    def after(self, step: Array) -> int:
        """The same without a wait: what was known when the step before was dispatched. `step` is any result of this one."""
        if self.alone:
            return self.now()
        flags = np.full(self._size, self._caught(), np.int32)
        placed = jax.make_array_from_callback(flags.shape, self._split, lambda index: flags[index])
        before, self._pending = self._pending, self._largest(placed, step)
        if before is not None:
            self.agreed = self.agreed or int(before)
        return self.agreed


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
