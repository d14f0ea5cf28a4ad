"""Which documents repeat an earlier one, decided before anything is written.

Every document has a digest of 16 bytes (two different ones of a thousand billion share theirs with probability 1e-15). Of
those that are equal, the one that stands first in the order of shards is kept: so the corpus is the same for any number of
workers, which could not be if each kept what it met first. The sources are read once more for that; reading takes a small
part of the time that tokenizing does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
BUCKET = 2**24
"""About how many digests are compared at a time: 1 GiB of memory."""


def save_digests(path: Path, digests: bytes) -> None:
    """Keep the digests of a shard's documents, one after another."""
    unfinished = path.with_suffix(".partial")
    unfinished.write_bytes(digests)
    unfinished.rename(path)


def find_duplicates(paths: Sequence[Path], bucket: int = BUCKET) -> list[np.ndarray]:
    """Of each shard's digests, the numbers of those that are not the first of their kind; ascending, int64."""
    shards = [np.memmap(path, DIGEST, "r") if path.stat().st_size else np.zeros(0, DIGEST) for path in paths]
    repeats = [np.zeros(len(shard), bool) for shard in shards]
    buckets = 1 + sum(map(len, shards)) // bucket
    for number in range(buckets):
        chosen = [np.flatnonzero(shard["high"] % buckets == number) for shard in shards]
        digests = np.concatenate([np.zeros(0, DIGEST), *(shard[places] for shard, places in zip(shards, chosen))])
        order = np.lexsort((digests["low"], digests["high"]))  # stable: equal ones stay in the order of shards
        ordered = digests[order]
        repeated = np.zeros(len(digests), bool)
        repeated[order[1:]] = ordered[1:] == ordered[:-1]
        at = 0
        for places, marks in zip(chosen, repeats):
            marks[places] = repeated[at : at + len(places)]
            at += len(places)
    return [np.flatnonzero(marks) for marks in repeats]
