"""A model in memory: a network with its weights and its tokenizer."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Dtype
from a3jax.data.healing import Healing
from a3jax.data.tokenizer import TextCodec, fillable
from a3jax.devices.accelerators import check_used
from a3jax.devices.mesh import check_mesh
from a3jax.errors import UserError
from a3jax.model.int8 import rounded
from a3jax.model.network import Network
from a3jax.model.parameters import count
from a3jax.model.two_stream import Compute
from a3jax.model.unstacked import unstacked
from a3jax.weights.pretrained import Pretrained, pretrained


@dataclass(frozen=True)
class Model(Network):
    """What `load` returns, and every other function of the Python interface takes."""

    codec: TextCodec
    record: Provenance
    checkpoint: Pretrained | None
    """Where it was loaded from; None for random weights in training."""
    fillable: np.ndarray
    """V bool: tokens that may stand in a blank, which are those of plain text."""

    @functools.cached_property
    def healing(self) -> Healing:
        """What text gives back to a blank behind it."""
        return Healing(self.codec, self.fillable)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the model" if self.checkpoint is None else str(self.checkpoint.folder)

    def __repr__(self) -> str:
        """One line, without the weights."""
        config = self.config
        shape = f"{config.family}, {config.layers} layers of width {config.width}, {count(config):,} parameters"
        return f"<a3jax.Model {self.name}: {shape}, {self.compute.dtype.name}, {self.record.steps:,} steps trained>"


def load(path: str | Path, dtype: str = "float32", step: int | None = None, mesh: Mesh | None = None) -> Model:
    """Load a model folder, a run folder at its newest step or the one asked for, or what `a3jax import` takes.

    `dtype` is "float32" or "bfloat16", for weights and computation, or "int8" for most weights
    (`a3jax.model.int8`), with all else in bfloat16, on a CPU in float32. Floats on a CPU have each layer's matrices apart
    (`a3jax.model.unstacked`; `numpy.asarray` stacks them). Over a `mesh` the weights are split as in training;
    have it in use, with `jax.set_mesh`, for whatever is done with the model; with `context`, that can be teacher forcing
    only. Raises `UserError` for anything else, for a folder that holds no model, and for one that the mesh cannot split.
    """
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype '{dtype}' is unknown; choose float32, bfloat16 or int8")
    check_used()
    checkpoint = pretrained(path, step)
    codec = checkpoint.codec
    if codec.vocab > checkpoint.config.vocab:
        raise UserError(f"{path}: the tokenizer has {codec.vocab} tokens, the model only {checkpoint.config.vocab}")
    if mesh is not None:
        check_mesh(mesh, checkpoint.config)
    computed = dtype if dtype != "int8" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
    params = checkpoint.load(mesh, computed)
    if dtype == "int8":
        params = rounded(params)
    elif mesh is None and jax.default_backend() == "cpu":
        params = unstacked(params)
    network = Network(checkpoint.config, params, Compute(jnp.dtype(computed)))
    return model_of(network, codec, checkpoint.record, checkpoint)


def model_of(network: Network, codec: TextCodec, record: Provenance, checkpoint: Pretrained | None) -> Model:
    """A model of what is in memory."""
    known = network.config, network.params, network.compute
    return Model(*known, codec, record, checkpoint, fillable(codec, network.config))
