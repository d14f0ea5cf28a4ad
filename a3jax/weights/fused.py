"""Matrices that a family stores as one, rows upon rows (Phi-3): split as they are read, put together as they are written."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from a3jax.config import ModelConfig
from a3jax.weights.families import Family, family_of
from a3jax.weights.safetensors_writer import Tensor

_LAYER, _WEIGHT = "model.layers.", ".weight"


class Part(NamedTuple):
    """Where one matrix lies in the one that is stored."""

    whole: str
    begin: int
    rows: int

    def within(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Where a part of the matrix lies in the whole."""
        rows = range(self.begin, self.begin + self.rows)[index[0]]
        return (slice(rows.start, rows.stop), *index[1:])


def parts(names: Iterable[str], config: ModelConfig) -> dict[str, Part]:
    """Every matrix that lies in one of the stored ones, by its own name."""
    family, found = family_of(config.family), {}
    heads = {"q": config.query_heads, "k": config.kv_heads, "v": config.kv_heads}
    for whole in names:
        prefix, fused = _split(whole)
        begin = 0
        for own in family.fused.get(fused, ()):
            letter = own.rpartition(".")[2][0]
            rows = heads[letter] * config.head_width if "attn" in own else config.ff_width
            found[f"{prefix}{own}{_WEIGHT}"] = Part(whole, begin, rows)
            begin += rows
    return found


def fuse(tensors: Iterable[Tensor], family: Family) -> Iterator[Tensor]:
    """The tensors as the family stores them; what is fused takes the place of its first part."""
    by_name = {tensor.name: tensor for tensor in tensors}
    whole_of = {own: (whole, several) for whole, several in family.fused.items() for own in several}
    for tensor in by_name.values():
        prefix, own = _split(tensor.name)
        if own not in whole_of:
            yield tensor
            continue
        whole, several = whole_of[own]
        if own == several[0]:
            each = [by_name[f"{prefix}{name}{_WEIGHT}"] for name in several]
            shape = (sum(part.shape[0] for part in each), *tensor.shape[1:])
            yield Tensor(f"{prefix}{whole}{_WEIGHT}", shape, tensor.dtype, partial(_together, each))


def _together(several: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.read() for tensor in several])


def _split(name: str) -> tuple[str, str]:
    """The beginning of a layer's tensor's name, and the name of the matrix in its layer."""
    number, _, own = name.removeprefix(_LAYER).partition(".")
    return f"{_LAYER}{number}.", own.removesuffix(_WEIGHT) if name.startswith(_LAYER) and name.endswith(_WEIGHT) else ""
