"""Corpora of documents that a test makes up, written as `a3jax prepare` writes them."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from a3jax.data.corpus import VERSION, Dtype, Manifest, ShardWriter, join_shards, write_manifest
from a3jax.data.pipeline import Corpus

Documents = Sequence[np.ndarray]


def write(folder: Path, train: Sequence[Documents], held_out: Sequence[Documents] = (), dtype: Dtype = "uint32") -> Corpus:
    """A corpus of documents, given shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, shards in (("train", train), ("held_out", held_out)):
        for number, documents in enumerate(shards):
            with ShardWriter(folder, split, number, dtype) as writer:
                for document in documents:
                    writer.write(document)
        splits[split] = join_shards(folder, split, range(len(shards)))
    manifest = Manifest(VERSION, **splits, vocab=2**16, tokenizer_sha256="", dtype=dtype, seed=0, held_out_fraction=0.0,
                        start_token=None, end_token=None, sources=(), settings={}, characters=0, passed_over={})  # fmt: skip
    write_manifest(folder, manifest)
    return Corpus(folder, manifest, folder.name)


def numbered(sizes: Sequence[int], first: int = 0) -> list[np.ndarray]:
    """Documents of these sizes whose tokens are all different: `first`, `first` + 1, ... through all of them."""
    edges = first + np.cumsum([0, *sizes])
    return [np.arange(begin, end) for begin, end in itertools.pairwise(edges)]


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}
