"""Processes that agree: a signal or a damaged file reaches one of them, and all must draw the same conclusion."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from a3jax.devices.passing import Passing, may_pass
from a3jax.errors import UserError

T = TypeVar("T")


class AgreedStop:
    """Turns what signals each process has caught into one answer, read a step late, as the metrics are.

    So it does with `due`, by which process 0 says that it is time to save; once, for that step alone.
    """

    def __init__(self, mesh: Mesh, caught: Callable[[], int], due: Callable[[], bool] = lambda: False):
        self._caught, self.alone = caught, jax.process_count() == 1
        self._due = due if jax.process_index() == 0 else lambda: False
        self.due = False
        """Whether process 0 had said so."""
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
            self.due = self._due()
            return self.now()
        flags = np.full(self._size, 2 * self._caught() + self._due(), np.int32)
        placed = jax.make_array_from_callback(flags.shape, self._split, lambda index: flags[index])
        before, self._pending = self._pending, self._largest(placed, step)
        if before is not None:
            signal, self.due = divmod(int(before), 2)
            self.agreed = self.agreed or signal
        return self.agreed


def together(work: Callable[[], T]) -> T:
    """What `work` returns, once it has succeeded in every process; if it failed in one, all raise an exception.

    That is a `UserError` if it was one anywhere, as then all must end, and `Passing` if none was graver. Errors of JAX and
    what it stands on are raised at once, without a word to the others, for then processes may be lost.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        if from_runtime(error):
            raise
        failure = error
    if jax.process_count() > 1:
        own = 0 if failure is None else 2 if isinstance(failure, Passing) else 3 if isinstance(failure, UserError) else 1
        gravest = multihost_utils.process_allgather(np.int32(own))
        if gravest.max() > own:
            raised = (ValueError, Passing, UserError)[gravest.max() - 1]
            failure = raised(f"process {gravest.argmax()} says so")
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def from_runtime(error: BaseException) -> bool:
    """Whether JAX, or what processes exchange through, has failed: nothing can be agreed on then, or told of a file."""
    return isinstance(error, jax.errors.JaxRuntimeError) or (may_pass(error) and not isinstance(error, Passing))


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
