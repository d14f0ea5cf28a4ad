"""Corpora -> batches. The batch of a step follows from the configuration and the step alone, each host's rows from no
others; so any number of hosts reads the same batches, and a resumed run reads on where it stopped.

Grain reads steps ahead, in threads or in processes of its own; what a checkpoint keeps is its iterator's state, the
number of the next step.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from a3jax.config import DataConfig
from a3jax.data.corpus import Manifest, Span, TokenStream, read_manifest
from a3jax.data.mixing import Mixture
from a3jax.data.own import Reading
from a3jax.data.packing import BestFit, Concat, Packing, Truncate, Windows, lay_out, read_windows
from a3jax.data.permutation import key, shuffled
from a3jax.errors import UserError
from a3jax.files.places import place

READ_THREADS = 2
READ_AHEAD = 4
"""Batches that are read before they are asked for."""


class Corpus(NamedTuple):
    """A prepared corpus, and the name that metrics give it."""

    folder: Path
    manifest: Manifest
    name: str


def open_corpora(data: DataConfig) -> tuple[Corpus, ...]:
    """The corpora of an experiment, in the order of its sources. Raises `UserError` for one that is not there."""
    paths = [place(source.path) for source in data.sources]
    ends = [path.absolute().name for path in paths]
    names = ends if len(set(ends)) == len(ends) else [str(path) for path in paths]
    return tuple(Corpus(path, read_manifest(path), name) for path, name in zip(paths, names))


class Batches:
    """The batches of all steps, by step: {"tokens", "segments"}, int32, of the rows that this host takes.

    Raises `UserError` for shards that are gone or damaged, when they are opened or when they are read.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        data: DataConfig,
        steps: int,
        seed: int,
        rows: Mapping[int, np.ndarray] | None = None,
        batch_S: np.ndarray | None = None,
        endless: bool = False,
    ):
        """`rows` are the rows of the global batch to read, by its size; None for all. `batch_S` are the sizes of all steps'
        batches, `data.batch` if not given. With `endless`, steps go on after the last, as that was.
        """
        self.names = tuple(corpus.name for corpus in corpora)
        self.packings = tuple(pack(TokenStream(c.folder, c.manifest, "train"), data) for c in corpora)
        windows = [len(packing) for packing in self.packings]
        self.mixture = Mixture(data.sources, windows, steps, data.batch if batch_S is None else batch_S, seed)
        self._rows, self._endless = rows, endless
        self._length = data.length

    def __len__(self) -> int:
        return sys.maxsize if self._endless else self.mixture.steps

    def __getitem__(self, step: int) -> Windows:
        size = self.mixture.batch(step)
        row_R = np.arange(size) if self._rows is None else self._rows[size]
        source_R, window_R = self.mixture.at(step, row_R)
        batch = {name: np.zeros((len(row_R), self._length), np.int32) for name in ("tokens", "segments")}
        for source in np.unique(source_R).tolist():
            chosen = np.flatnonzero(source_R == source)
            for name, array in read_windows(self.packings[source], window_R[chosen]).items():
                batch[name][chosen] = array
        return batch

    def reading(self, workers: int) -> grain.DatasetIterator:
        """An iterator over the batches from the first step on."""
        return iter(training_batches(self, workers))

    def progress(self, steps: int) -> dict[str, float]:
        """For the metrics after so many steps: how often each source was gone through, and its share of the windows."""
        epochs, shares = self.mixture.epochs(steps).tolist(), self.mixture.shares(steps).tolist()
        facts = {f"epochs/{name}": value for name, value in zip(self.names, epochs)}
        if len(self.names) > 1:
            facts |= {f"share/{name}": value for name, value in zip(self.names, shares)}
        return facts


def pack(stream: TokenStream, data: DataConfig) -> Packing:
    """A stream in windows, as the experiment wants it."""
    if data.packing == "concat":
        return Concat(stream, data.length)
    if data.packing == "truncate":
        return Truncate(stream, data.length)
    return BestFit(stream, data.length, data.overlap)


def training_batches(batches: Batches, workers: int = 0) -> grain.IterDataset:
    """The batches of steps 0, 1, ..., read ahead: in threads, or by `workers` processes."""
    steps = grain.MapDataset.source(batches)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which no one else here uses
        one_at_a_time = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return one_at_a_time.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD))


def go_on_from(iterator: Reading, state: dict[str, Any], step: int) -> None:
    """Set an iterator to a state that has been through JSON, which turns tuples into lists; Grain compares tuples.

    Raises `UserError` for a state of another kind of reader than this one.
    """
    try:
        iterator.set_state(_with_tuples(state))
    except (KeyError, TypeError, ValueError):
        what = f"the checkpoint of step {step} does not say where to read on in these data"
        raise UserError(f"{what}; it is an older version's, or was made with other data") from None


def held_out_windows(corpora: Sequence[Corpus], length: int, windows: int) -> Windows:
    """Up to `windows` held-out windows, W x L, as many from each corpus; of each document at most `length` tokens.

    They are always the same ones, and always the first of a larger number. Raises `UserError` where they are of chats whose
    prompts fill them, so that nothing is left to be predicted.
    """
    streams = [TokenStream(c.folder, c.manifest, "held_out") for c in corpora if c.manifest.held_out.tokens]
    shares = [len(part) for part in np.array_split(np.arange(windows), max(1, len(streams)))]
    parts = [_beginnings(stream, length, share) for stream, share in zip(streams, shares)]
    if parts and windows and not any((part["segments"] > 0).any() for part in parts):
        what = f"in windows of data.length {length} all held-out text is given: the prompts of its chats fill them"
        raise UserError(f"{what}; make data.length longer, or hold nothing out")
    empty = {name: np.zeros((0, length), np.int32) for name in ("tokens", "segments")}
    return {name: np.concatenate([none, *(part[name] for part in parts)]) for name, none in empty.items()}


def _beginnings(stream: TokenStream, length: int, windows: int) -> Windows:
    begin_D = np.concatenate([*stream.documents(2**16), [len(stream)]])
    chosen = shuffled(len(begin_D) - 1, key(0))[: windows * length]  # a document is at least a token
    begin_N, end_N = begin_D[chosen], np.minimum(begin_D[chosen + 1], begin_D[chosen] + length)
    enough = 1 + int(np.searchsorted(np.cumsum(end_N - begin_N), windows * length))
    begin_N, end_N = begin_N[:enough], end_N[:enough]
    span = Span(*(array_T[: windows * length] for array_T in stream.read(begin_N, end_N)))
    row_T = np.arange(len(span.tokens)) // length
    span.first[::length] = True
    return lay_out(span, row_T, -(-len(span.tokens) // length), length)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
