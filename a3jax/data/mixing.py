"""Which window of which source every row of every step is: a pure function of the configuration and the step.

Rows are shared out to sources by their weights, which may change over the steps; at every step each source is owed what
its weight adds up to by then, and what it has been given so far differs from that by less than a row or so. The rows of
a source go through its windows in random order, all of them before any a second time, in a new order each time.
"""

from collections.abc import Sequence

import numpy as np

from a3jax.config import SourceConfig
from a3jax.data.permutation import key, permute, shuffled
from a3jax.errors import UserError

_ROWS, _WINDOWS = 0, 1
"""What a key is for: the rows of a step, or the windows of a source in an epoch."""


def weights(sources: Sequence[SourceConfig], steps: int) -> np.ndarray:
    """The share of every source K at every step S, S x K float64, adding to 1 over sources.

    Linear between the points of a source's schedule, constant before the first and after the last. Raises `UserError`
    for a step at which no source has any.
    """
    columns = []
    for source in sources:
        points = [(point.step, point.weight) for point in source.schedule] or [(0, source.weight)]
        columns.append(np.interp(np.arange(steps), *np.array(points, np.float64).T))
    weight_SxK = np.stack(columns, axis=1)
    total_S = weight_SxK.sum(1)
    if not total_S.all():
        raise UserError(f"data.mixture: no source has a weight above 0 at step {total_S.argmin()}; change its schedules")
    return weight_SxK / total_S[:, None]


def rows(share_SxK: np.ndarray, batch: int | np.ndarray) -> np.ndarray:
    """How many rows every source has been given before each step: (S+1) x K int64, the last row after all steps.

    `batch` is that of every step, S or one for all. At each step a source gets the whole rows that it is owed, and the
    remaining rows go to those owed most.
    """
    steps, sources = share_SxK.shape
    batch_S = np.broadcast_to(batch, steps)
    given_SxK = np.zeros((steps + 1, sources), np.int64)
    if sources == 1:
        given_SxK[1:, 0] = np.cumsum(batch_S)
        return given_SxK
    owed_SxK = np.cumsum(share_SxK * batch_S[:, None], axis=0)
    for step in range(steps):
        due_K = owed_SxK[step] - given_SxK[step]
        rows_K = np.maximum(np.floor(due_K), 0).astype(np.int64)
        missing = int(batch_S[step] - rows_K.sum())
        by_rest = np.argsort(rows_K - due_K, kind="stable")  # who is owed most after these rows comes first
        if missing >= 0:
            rows_K[by_rest[:missing]] += 1
        else:
            rows_K[by_rest[rows_K[by_rest] > 0][missing:]] -= 1
        given_SxK[step + 1] = given_SxK[step] + rows_K
    return given_SxK


class Mixture:
    """Rows of steps -> sources and windows. Steps after the last that was planned are as that one."""

    def __init__(
        self, sources: Sequence[SourceConfig], windows: Sequence[int], steps: int, batch: int | np.ndarray, seed: int
    ):
        """`windows` says how many windows each source has, `batch` how many rows every step has, S or one for all."""
        self.steps, self.windows = steps, tuple(windows)
        self._batch_S = np.broadcast_to(batch, steps)
        self._share_SxK = weights(sources, steps)
        self._given_SxK = rows(self._share_SxK, self._batch_S)
        self._seed = seed

    def batch(self, step: int) -> int:
        """The rows of a step's batch."""
        return int(self._batch_S[min(step, self.steps - 1)])

    def at(self, step: int, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source and the window of rows of a step's batch, both int64."""
        before_K, after_K = self._given(step), self._given(step + 1)
        place_R = shuffled(self.batch(step), key(self._seed, _ROWS, step))[row_R]
        edges_K = np.cumsum(after_K - before_K)
        source_R = np.searchsorted(edges_K, place_R, side="right")
        index_R = before_K[source_R] + place_R - (edges_K - after_K + before_K)[source_R]
        window_R = np.empty(len(row_R), np.int64)
        for source in np.unique(source_R).tolist():
            mine = source_R == source
            epoch_N, index_N = np.divmod(index_R[mine], self.windows[source])
            window_R[mine] = permute(index_N, self.windows[source], key(self._seed, _WINDOWS, source, epoch_N))
        return source_R, window_R

    def shares(self, steps: int) -> np.ndarray:
        """The share of each source in the first `steps` steps, K float64."""
        return self._given(steps) / max(1, self._given(steps).sum())

    def epochs(self, steps: int) -> np.ndarray:
        """How often the first `steps` steps go through each source, K float64."""
        return self._given(steps) / np.array(self.windows)

    def _given(self, steps: int) -> np.ndarray:
        """How many rows every source is given in the first `steps` steps, K."""
        if steps >= len(self._given_SxK):  # from the first step on, that rows are those of a plan with so many steps
            more = 2 * steps - self.steps
            batch_S = np.pad(self._batch_S, (0, more), mode="edge")
            self._given_SxK = rows(np.pad(self._share_SxK, ((0, more), (0, 0)), mode="edge"), batch_S)
        return self._given_SxK[steps]
