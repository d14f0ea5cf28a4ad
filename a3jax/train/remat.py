"""What the forward pass keeps for the backward pass, and the choice where the experiment leaves it open.

none     everything: least arithmetic, most memory traffic
dots     results of matrix products and of attention; norms, rotations and gates are computed again
offload  the same, kept in the host's memory (accelerators only)
full     each layer's input; the whole forward pass is computed again
"""

import dataclasses
import math
import os
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Remat
from a3jax.devices.mesh import batch_parts, width_parts
from a3jax.errors import UserError
from a3jax.model.parameters import declared, shapes
from a3jax.train.optimizer import moment_bytes
from a3jax.train.trained import changes

SHARE = 0.8
"""Of the device's memory; the rest is for logits, attention and what the estimate leaves out."""


def choose(config: Config, model: ModelConfig, mesh: Mesh, memory: int | None) -> Remat:
    """The experiment's own setting or, for `auto`, `dots` where it fits into `memory` bytes a device, else `full`.

    Raises `UserError` for `offload` on a CPU, which has no other memory.
    """
    if config.train.remat == "offload" and mesh.devices.flat[0].platform == "cpu":
        raise UserError("train.remat is 'offload', which moves to the host's memory what a CPU has there anyway; take 'dots'")
    if config.train.remat != "auto":
        return config.train.remat
    if memory is None:
        return "full"
    return "dots" if state_bytes(config, model, mesh) + saved_bytes(config, model, mesh) <= SHARE * memory else "full"


def chosen(config: Config, model: ModelConfig, mesh: Mesh, memory: int | None) -> Config:
    """The experiment with `auto` replaced by what it chooses."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, remat=choose(config, model, mesh, memory)))


def state_bytes(config: Config, model: ModelConfig, mesh: Mesh) -> int:
    """On one device: parameters, gradients and moments of those that are trained, a source to learn from."""
    held, changed = held_and_changed(config, model, mesh.shape["expert"])
    moments = moment_bytes(config.optimizer) * changed
    return (4 * (held * (2 if config.adapt.distill else 1) + changed) + moments) // (width_parts(mesh) * mesh.shape["tensor"])


def held_and_changed(config: Config, model: ModelConfig, expert: int) -> tuple[int, int]:
    """How many numbers of parameters lie beside one another, and how many of them are trained, as `expert` splits them.

    What splits the width, heads and feed-forward has then still to be divided by.
    """

    def count(parameters: nnx.State) -> int:
        leaves = jax.tree.leaves(parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        return sum(math.prod(leaf.shape) // (expert if "X" in declared(leaf).axes else 1) for leaf in leaves)

    everything = shapes(model)
    return count(everything), count(nnx.filter_state(everything, changes(config.adapt, model)))


def saved_bytes(config: Config, model: ModelConfig, mesh: Mesh) -> int:
    """What `dots` keeps on one device, both streams.

    A row keeps in each layer the layer's input, the results of output and down projections (D each), query and
    attention (H E each), gate and up (F each); a content row keeps its key and value (K E each). The last layer has
    query rows only. Of experts, a row keeps the results of all those that it goes to, and of rows of other devices too.
    """
    itemsize = jnp.dtype(config.train.compute_dtype).itemsize
    windows = max(config.batches) // config.train.accumulate / (batch_parts(mesh) * mesh.shape["context"])
    copies = model.experts.active * mesh.shape["expert"] if model.experts else 1
    split = 2 * model.query_heads * model.head_width + 2 * copies * model.ff_width + model.kv_heads * model.head_width
    row = (2 + copies) * model.width + split / mesh.shape["tensor"]
    return int(itemsize * 2 * windows * config.data.length * row * (model.layers - 0.5))


def device_memory(device: jax.Device) -> int | None:
    """Bytes of a device, an equal share of the host's for simulated ones on the CPU; None where it cannot be asked."""
    here = jax.local_devices()[0]
    if device.process_index != here.process_index and device.platform == here.platform:
        device = here  # those of other processes are of the same kind, and do not answer
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    try:
        stats = device.memory_stats()
    except (RuntimeError, NotImplementedError):  # a device that is compiled for and not there
        return None
    return cast(int, stats["bytes_limit"]) if stats else None
