"""Matrices that a family stores as one: split as they are read, put together as they are written.

Phi-3 stores some rows upon rows. gpt-oss stores those of all experts, turned around (experts x inputs x outputs), and outputs
of gates and of what they multiply take turns.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from a3jax.config import ModelConfig
from a3jax.weights.families import family_of
from a3jax.weights.safetensors_writer import Tensor

_LAYER = re.compile(r"model\.layers\.\d+\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
Index = tuple[slice, ...]


class Part(NamedTuple):
    """Where one tensor lies in the one that is stored."""

    whole: str
    shape: tuple[int, ...]
    outputs: range
    """Which of all that are stored are its own: the first axis, or the last one of experts."""
    expert: int | None = None

    def read(self, read: Callable[[str, Index], np.ndarray], index: Index) -> np.ndarray:
        """A part of the tensor, of what `read` gives of stored ones."""
        index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        outputs = self.outputs[index[0]]
        stretch = slice(outputs.start, outputs[-1] + 1) if outputs else slice(0)
        if self.expert is None:
            return read(self.whole, (stretch, *index[1:]))
        stored = read(self.whole, (slice(self.expert, self.expert + 1), *index[1:], stretch))
        return stored[0, ..., :: outputs.step].T


def parts(stored: Mapping[str, tuple[int, ...]], config: ModelConfig) -> dict[str, Part]:
    """Every tensor that lies in one of the stored ones, whose shapes are given, by its own name."""
    fused, found = family_of(config.family).fused, {}
    rows = {"q": config.query_heads * config.head_width, "k": config.kv_heads * config.head_width, "gate": config.ff_width}
    for whole, shape in stored.items():
        layer, own = _split(whole)
        names = fused.get(own, ())
        if not (names and shape) or 0 in shape:
            continue
        begin = 0
        for place, name in enumerate(names):
            if "{x}" in name:
                outputs = range(place, shape[-1], len(names))
                for x in range(shape[0]):
                    found[f"{layer}{name.format(x=x)}"] = Part(whole, (len(outputs), *shape[1:-1]), outputs, x)
            else:  # the last one has all that is left
                end = shape[0] if name == names[-1] else begin + rows[name.split(".")[1].removesuffix("_proj")]
                found[f"{layer}{name}"] = Part(whole, (max(0, end - begin), *shape[1:]), range(begin, end))
                begin = end
    return found


def fuse(tensors: Iterable[Tensor], config: ModelConfig) -> Iterator[Tensor]:
    """The tensors as the family stores them; what is fused takes the place of its first part."""
    fused, by_name = family_of(config.family).fused, {tensor.name: tensor for tensor in tensors}
    whole_of = {name: whole for whole, names in fused.items() for name in names}
    for tensor in by_name.values():
        layer, own = _split(tensor.name)
        whole = whole_of.get(general := _EXPERT.sub(".experts.{x}.", own))
        if whole is None:
            yield tensor
        elif own == fused[whole][0].format(x=0):
            count = config.experts.count if config.experts and "{x}" in general else 0
            each = [[by_name[f"{layer}{name.format(x=x)}"] for name in fused[whole]] for x in range(count or 1)]
            together = sum(part.shape[0] for part in each[0])
            shape = (count, *tensor.shape[1:], together) if count else (together, *tensor.shape[1:])
            read = partial(_stacked, each, shape, tensor.dtype) if count else partial(_upon_each_other, each[0])
            yield Tensor(f"{layer}{whole}", shape, tensor.dtype, read)


def _upon_each_other(several: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.read() for tensor in several])


def _stacked(each: list[list[Tensor]], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    whole = np.empty(shape, dtype)
    for expert, several in zip(whole, each):
        for place, tensor in enumerate(several):
            expert[..., place :: len(several)] = tensor.read().T
    return whole


def _split(name: str) -> tuple[str, str]:
    """The beginning of a layer's tensor's name, and its name in the layer; two empty ones of another."""
    found = _LAYER.match(name)
    return (found[0], name.removeprefix(found[0])) if found else ("", "")
