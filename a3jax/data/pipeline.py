"""A corpus -> batches of packed windows, with Grain. The iterator's state is saved with the model, so a resumed run
reads on where it stopped."""

from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from grain import experimental as grain_experimental

from a3jax.data.corpus import Manifest, Split, TokenStream

SHUFFLED_WINDOWS = 256
"""A long document makes many windows in a row; windows are shuffled among this many."""


def training_batches(
    folder: Path, manifest: Manifest, length: int, batch: int, seed: int, workers: int = 0
) -> grain.IterDataset:
    """Endless shuffled batches {"tokens", "segments"}, B x L int32; segments number a window's documents from 1."""
    documents = _documents(folder, manifest, "train").seed(seed).shuffle().repeat()
    windows = _pack(documents.map(_named).to_iter_dataset(), length)
    windows = grain_experimental.WindowShuffleIterDataset(windows, window_size=SHUFFLED_WINDOWS, seed=seed)
    batches = windows.batch(batch, drop_remainder=True)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which no one else here uses
        return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return batches


def go_on_from(batches: grain.DatasetIterator, state: dict[str, Any]) -> None:
    """Set an iterator to a state that has been through JSON, which turns tuples into lists; Grain compares tuples."""
    batches.set_state(_with_tuples(state))


def held_out_windows(folder: Path, manifest: Manifest, length: int, windows: int) -> dict[str, np.ndarray]:
    """The first `windows` windows of the held-out split, W x L, of each document at most `length` tokens."""
    empty = {name: np.zeros((0, length), np.int32) for name in ("tokens", "segments")}
    if not manifest.held_out.documents:
        return empty
    documents = _documents(folder, manifest, "held_out").seed(0).shuffle()
    starts = documents.map(lambda tokens: {"tokens": tokens[:length]})
    packed = [window for window, _ in zip(_pack(starts.to_iter_dataset(), length), range(windows), strict=False)]
    return {name: np.stack([window[name] for window in packed]) for name in empty} if packed else empty


class _Documents:
    """The documents of a split by number."""

    def __init__(self, stream: TokenStream):
        self._stream = stream
        self._edges = np.concatenate([*stream.documents(2**16), [len(stream)]])

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._stream.read(self._edges[index : index + 1], self._edges[index + 1 : index + 2])[0]


def _documents(folder: Path, manifest: Manifest, split: Split) -> grain.MapDataset:
    return grain.MapDataset.source(_Documents(TokenStream(folder, manifest, split)))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _named(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": tokens}


def _pack(documents: grain.IterDataset, length: int) -> grain.IterDataset:
    packed = grain_experimental.ConcatThenSplitIterDataset(documents, length_struct={"tokens": length})
    return packed.map(lambda window: {"tokens": window["tokens"], "segments": window["tokens_segment_ids"]})
