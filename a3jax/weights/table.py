"""One invertible table: where each of our parameters stands in a Hugging Face checkpoint, and in which layout.

Their matrices are [out, in]; ours keep input axes first and split heads. How many of a parameter's leading axes are inputs
stands where it is declared (`a3jax.model.parameters`); both directions follow from that, so import and export cannot
disagree, and so does where a part of ours lies in theirs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from a3jax.config import ModelConfig
from a3jax.model.adapters import adapted, factors
from a3jax.model.parameters import Kind, declarations
from a3jax.weights.families import Mixture, family_of


@dataclass(frozen=True)
class Entry:
    """One parameter: our dotted path, their name, its kind, and how many of our axes are inputs.

    In their name "{i}" is the layer, and "{x}" the expert: ours is stacked over what theirs has one tensor of each for.
    """

    ours: str
    theirs: str
    kind: Kind
    inputs: int = 0

    @property
    def stacked(self) -> int:
        """Over how many of its first axes ours is stacked."""
        return ("{i}" in self.theirs) + ("{x}" in self.theirs)

    def get(self, tree: dict[str, Any]) -> Any:
        """Our parameter in a nested dict of all of them."""
        for part in self.ours.split("."):
            tree = tree[part]
        return tree

    def set(self, tree: dict[str, Any], value: np.ndarray) -> None:
        """Put our parameter into a nested dict of all of them."""
        *parents, last = self.ours.split(".")
        for part in parents:
            tree = tree[part]
        tree[last] = value

    def names(self, shape: tuple[int, ...]) -> dict[tuple[int, ...], str]:
        """Their names by index along the axes that ours, whose whole shape is given, is stacked over."""
        return {index: self.theirs.format(**dict(zip("ix", index))) for index in np.ndindex(*shape[: self.stacked])}

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Their tensor's shape, from ours (without the axes it is stacked over; so for the other methods)."""
        return tuple(math.prod(shape[axes]) for axes in self._axes())

    def their_index(self, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a part of ours lies in theirs; `shape` is all of ours, `index` one slice an axis.

        Of our axes that are one in theirs (heads and head width), only the first may be cut; else raises `ValueError`.
        """
        return tuple(_merged(index[axes], shape[axes]) for axes in self._axes())

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their tensor, or the part of it at `their_index`, in our layout; `shape` is ours."""
        return (tensor.T if self.inputs else tensor).reshape(shape)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array in their layout; the inverse of `to_ours`."""
        theirs = self.their_shape(array.shape)
        return np.ascontiguousarray(array.reshape(theirs[::-1]).T if self.inputs else array.reshape(theirs))

    def _axes(self) -> tuple[slice, ...]:
        """Which of our axes make each axis of theirs."""
        if self.inputs:
            return slice(self.inputs, None), slice(self.inputs)
        return (slice(1), slice(1, None)) if self.kind in ("embedding", "head") else (slice(None),)


def _merged(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """One slice of the axis that several, row-major, become."""
    first, *rest = (range(n)[part] for part, n in zip(index, shape, strict=True))
    if any(len(part) < n for part, n in zip(rest, shape[1:])):
        raise ValueError(f"{index} of {shape} is not one stretch of numbers")
    size = math.prod(shape[1:])
    return slice(first.start * size, first.stop * size)


_Names = tuple[tuple[str, str], ...]
"""Our dotted path and their name."""

_ATTENTION: _Names = (
    ("blocks.query", "model.layers.{i}.self_attn.q_proj.weight"),
    ("blocks.key", "model.layers.{i}.self_attn.k_proj.weight"),
    ("blocks.value", "model.layers.{i}.self_attn.v_proj.weight"),
    ("blocks.output", "model.layers.{i}.self_attn.o_proj.weight"),
)
_MLP: _Names = (
    ("blocks.gate", "model.layers.{i}.mlp.gate_proj.weight"),
    ("blocks.up", "model.layers.{i}.mlp.up_proj.weight"),
    ("blocks.down", "model.layers.{i}.mlp.down_proj.weight"),
)
_QUERY_KEY_NORM: _Names = (
    ("blocks.query_norm", "model.layers.{i}.self_attn.q_norm.weight"),
    ("blocks.key_norm", "model.layers.{i}.self_attn.k_norm.weight"),
)
_MLP_NORM, _MLP_NORM_OF_FOUR = "post_attention_layernorm", "pre_feedforward_layernorm"
"""The norm before the MLP is called after what it stands behind, unless a norm stands there."""

QUERY_SEED = Entry("query_seed", "model.query_seed", "seed")
"""Not part of any pretrained model; an exported two-stream model has it."""


def entries(config: ModelConfig) -> tuple[Entry, ...]:
    """The table of a model with this configuration, but for the query seed: of all names, those of its parameters."""
    mlp_norm = _MLP_NORM_OF_FOUR if config.post_norm else _MLP_NORM
    names = (
        ("embedding", "model.embed_tokens.weight"),
        ("blocks.attention_norm", "model.layers.{i}.input_layernorm.weight"),
        ("blocks.attention_post_norm", "model.layers.{i}.post_attention_layernorm.weight"),
        ("blocks.mlp_norm", f"model.layers.{{i}}.{mlp_norm}.weight"),
        ("blocks.mlp_post_norm", "model.layers.{i}.post_feedforward_layernorm.weight"),
        *_ATTENTION,
        ("blocks.sinks", "model.layers.{i}.self_attn.sinks"),
        *_QUERY_KEY_NORM,
        *_feed_forward(config),
        *((f"{ours}_bias", theirs.replace(".weight", ".bias")) for ours, theirs in (*_ATTENTION, *_feed_forward(config))),
        ("final_norm", "model.norm.weight"),
        ("head", "lm_head.weight"),
        ("successor_seed", "model.successor_seed.weight"),
        *_adapters(config),
    )
    declared = declarations(config)
    return tuple(
        Entry(ours, theirs, declared[ours].kind, declared[ours].inputs) for ours, theirs in names if ours in declared
    )


def _feed_forward(config: ModelConfig) -> _Names:
    if config.experts is None:
        return _MLP
    mixture = family_of(config.family).mixture or Mixture(config.experts)
    return tuple((f"blocks.{ours}", f"model.layers.{{i}}.{theirs}.weight") for ours, theirs in mixture.names.items())


def _adapters(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Not part of any pretrained model either; named after the weights that they change."""
    for ours, theirs in (*_ATTENTION, *_MLP):
        if (name := ours.removeprefix("blocks.")) in adapted(config):
            for factor, end in zip(factors(name), ("in", "out")):
                yield f"blocks.{factor}", f"{theirs.removesuffix('.weight')}_{end}.weight"
