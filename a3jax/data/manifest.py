"""A prepared corpus on disk: ArrayRecord shards of token ids, one document per record, and `manifest.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from a3jax.config import read
from a3jax.errors import UserError

Split = Literal["train", "held_out"]
Dtype = Literal["uint16", "uint32"]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds."""

    documents: int
    tokens: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Facts about a corpus that training checks before it reads."""

    train: SplitCounts
    held_out: SplitCounts
    vocab: int
    tokenizer_sha256: str
    dtype: Dtype
    seed: int
    held_out_fraction: float
    start_token: int | None
    end_token: int | None
    sources: tuple[str, ...]
    characters: int
    skipped: int = 0
    """Source files passed over because they are not UTF-8 text."""

    def paths(self, folder: Path, split: Split) -> list[Path]:
        """The shards of a split; raises `UserError` for one that is gone."""
        paths = [folder / name for name in getattr(self, split).shards]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing; run a3jax prepare again")
        return paths

    def decode(self, record: bytes) -> np.ndarray:
        """One record's token ids, int32."""
        return np.frombuffer(record, self.dtype).astype(np.int32)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a prepared corpus (no {MANIFEST}); write one with a3jax prepare")
    return read(Manifest, path)
