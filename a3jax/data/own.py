"""Batches of one's own: an iterator of token arrays, given to `a3jax.fit`, where an experiment names corpora.

It is one that can go on where it was: `get_state` says where it is, and `set_state` brings another like it to that place, as
Grain's iterators do. The state is saved with every checkpoint.
"""

import ast
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

import numpy as np

from a3jax.data.packing import Windows
from a3jax.errors import UserError

TokenBatches = Iterable[np.ndarray | Mapping[str, np.ndarray]]
"""Of every step B x L token ids; or, by name, `tokens` and `segments`, which number the documents of a window from 1, with 0
for padding and the number negated where a token is given."""


class Reading(Protocol):
    """What a run reads its batches from: an iterator that knows where it is."""

    def __next__(self) -> Windows: ...
    def get_state(self) -> dict[str, Any]: ...  # noqa: D102
    def set_state(self, state: dict[str, Any]) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class OwnBatches:
    """Reads batches of one's own, of which this host keeps its rows. Raises `UserError` for a batch that cannot be one."""

    def __init__(
        self,
        data: TokenBatches,
        length: int,
        vocab: int,
        rows: Mapping[int, np.ndarray],
        batch_S: np.ndarray,
        refuses_given: str | None = None,
    ):
        """`data` may be what gives an iterator. `rows` are those of this host, by the size of the global batch; `batch_S` are
        the sizes of all steps' batches; `refuses_given` says why no token may be given, if none may.
        """
        try:
            self._iterator: Any = iter(data)
        except TypeError:
            raise UserError(f"data is {type(data).__name__}; it must be an iterator of token arrays") from None
        if not all(callable(getattr(self._iterator, name, None)) for name in ("get_state", "set_state")):
            what = f"data, {type(self._iterator).__name__}, has no get_state and set_state"
            raise UserError(f"{what}, by which a run goes on where it stopped; give an iterator that has, as Grain's do")
        self._length, self._vocab, self._rows, self._batch_S = length, vocab, rows, batch_S
        self._refuses_given = refuses_given
        self._read = 0

    def reading(self, workers: int) -> Self:
        """Itself. It is read in this process; whoever wants more brings an iterator that reads ahead."""
        return self

    def progress(self, steps: int) -> dict[str, float]:
        """Nothing: how often what was read, only its owner knows."""
        return {}

    def __next__(self) -> Windows:
        try:
            batch = next(self._iterator)
        except StopIteration:
            steps = len(self._batch_S)
            raise UserError(f"data ended after {self._read} batches, and the run has {steps} steps; give more") from None
        windows = self._windows(batch)
        self._read += 1
        return windows

    def _windows(self, batch: np.ndarray | Mapping[str, np.ndarray]) -> Windows:
        what = f"batch {self._read + 1} of data"
        named = batch if isinstance(batch, Mapping) else {"tokens": batch}
        if not {"tokens"} <= named.keys() <= {"tokens", "segments"}:
            raise UserError(
                f"{what} has {', '.join(map(str, named)) or 'nothing'}; it must have tokens, and may have segments"
            )
        size = int(self._batch_S[min(self._read, len(self._batch_S) - 1)])
        arrays = {name: np.asarray(array) for name, array in named.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "iu":
                raise UserError(f"{what} has {name} of type {array.dtype}; they must be integers")
            if array.shape != (size, self._length):
                shape = " x ".join(map(str, array.shape)) or "a number"
                raise UserError(
                    f"{what} has {name} of shape {shape}; data.batch and data.length ask for {size} x {self._length}"
                )
        tokens_BxL = arrays["tokens"]
        low, high = tokens_BxL.min(), tokens_BxL.max()
        if low < 0 or high >= self._vocab:
            raise UserError(f"{what} has token id {low if low < 0 else high}; the model has ids from 0 to {self._vocab - 1}")
        arrays.setdefault("segments", np.ones_like(tokens_BxL))
        if self._refuses_given and (arrays["segments"] < 0).any():
            raise UserError(f"{what} has given tokens, {self._refuses_given}")
        return {name: array[self._rows[size]].astype(np.int32) for name, array in arrays.items()}

    def get_state(self) -> dict[str, Any]:
        """The iterator's state as Python writes it, so that what comes back is equal to it, tuples and bytes included."""
        state = self._iterator.get_state()
        written = repr(state)
        try:
            same = ast.literal_eval(written) == state
        except (ValueError, SyntaxError):
            same = False
        if not same:
            what = written if len(written) <= 80 else f"{written[:60]}..."
            raise UserError(f"data.get_state() gives {what}; a state must be of plain numbers, texts, bytes, lists and dicts")
        return {"own": written, "read": self._read}

    def set_state(self, state: dict[str, Any]) -> None:
        """Bring the iterator to where it was. Raises `KeyError` for a state of another kind of reader."""
        self._iterator.set_state(ast.literal_eval(state["own"]))
        self._read = state["read"]

    def close(self) -> None:
        """Nothing: the iterator is its owner's."""
