"""A corpus -> batches of packed windows, with Grain. The iterator's state is saved with the model, so a resumed run
reads on where it stopped."""

from pathlib import Path

import grain
import numpy as np
from grain import experimental as grain_experimental

from a3jax.data.manifest import Manifest

SHUFFLED_WINDOWS = 256
"""A long document makes many windows in a row; windows are shuffled among this many."""


def training_batches(
    folder: Path, manifest: Manifest, length: int, batch: int, seed: int, workers: int = 0
) -> grain.IterDataset:
    """Endless shuffled batches {"tokens", "segments"}, B x L int32; segments number a window's documents from 1."""
    paths = [str(path) for path in manifest.paths(folder, "train")]
    documents = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths)).seed(seed).shuffle().repeat()
    windows = _pack(documents.map(manifest.decode).map(_named).to_iter_dataset(), length)
    windows = grain_experimental.WindowShuffleIterDataset(windows, window_size=SHUFFLED_WINDOWS, seed=seed)
    batches = windows.batch(batch, drop_remainder=True)
    if workers:
        return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return batches


def held_out_windows(folder: Path, manifest: Manifest, length: int, windows: int) -> dict[str, np.ndarray]:
    """The first `windows` windows of the held-out split, W x L, of each document at most `length` tokens."""
    paths = [str(path) for path in manifest.paths(folder, "held_out")]
    empty = {name: np.zeros((0, length), np.int32) for name in ("tokens", "segments")}
    if not paths:
        return empty
    documents = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths)).seed(0).shuffle()
    starts = documents.map(manifest.decode).map(lambda tokens: {"tokens": tokens[:length]})
    packed = [window for window, _ in zip(_pack(starts.to_iter_dataset(), length), range(windows), strict=False)]
    return {name: np.stack([window[name] for window in packed]) for name in empty} if packed else empty


def _named(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": tokens}


def _pack(documents: grain.IterDataset, length: int) -> grain.IterDataset:
    packed = grain_experimental.ConcatThenSplitIterDataset(documents, length_struct={"tokens": length})
    return packed.map(lambda window: {"tokens": window["tokens"], "segments": window["tokens_segment_ids"]})
