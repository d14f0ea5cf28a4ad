"""The real train step of a stage, put through the TPU compiler for devices that are not there."""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, check_start
from a3jax.devices.compilation import options
from a3jax.devices.mesh import check_mesh, make_mesh
from a3jax.errors import UserError, first_line
from a3jax.plan.topology import Topology
from a3jax.train.state import abstract_state
from a3jax.train.trained import trained_model
from a3jax.weights.pretrained import pretrained


@dataclass(frozen=True)
class Memory:
    """Bytes on one device when a step needs most."""

    parameters: int
    """Float32, as they are kept between steps."""
    optimizer: int
    temporaries: int
    """Activations, gradients, weights cast and gathered; and the little there is of the batch."""
    program: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.temporaries + self.program


class Fits(NamedTuple):
    """A step that the compiler has compiled."""

    compiled: jax.stages.Compiled
    memory: Memory


class TooLarge(NamedTuple):
    """A step that the compiler refuses for want of memory; it says how much it needs, to 0.01 GiB."""

    memory: Memory
    available: int


def model_of(config: Config) -> ModelConfig:
    """The shape that an experiment trains: its own, or that of its source. Raises `UserError` if there is neither."""
    check_start(config)
    if config.model is not None:
        return trained_model(config, config.model)
    assert config.source is not None
    return trained_model(config, pretrained(config.source).config)


def mesh_over(config: Config, model: ModelConfig, topology: Topology) -> Mesh:
    """The experiment's mesh over the devices of a topology. Raises `UserError` where it does not divide them or the model."""
    mesh = make_mesh(config.mesh, list(topology.devices))
    for batch in config.batches:
        check_mesh(mesh, model, batch // config.train.accumulate, config.data.length)
    return mesh


def fit(lowered: jax.stages.Lowered, config: Config, model: ModelConfig, mesh: Mesh) -> Fits | TooLarge:
    """Compile a step for the devices of its mesh. Raises `UserError` where the compiler fails for another reason."""
    state = abstract_state(config, model, mesh)
    parameters, optimizer = (_bytes_per_device(part) for part in (state.params, state.optimizer))
    try:
        compiled = lowered.compile(options(mesh))
    except jax.errors.JaxRuntimeError as error:
        needed, available = _out_of_memory(str(error))
        return TooLarge(Memory(parameters, optimizer, needed - parameters - optimizer, 0), available)
    stats = compiled.memory_analysis()
    assert stats is not None, "the TPU compiler tells how much memory its programs take"
    arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    # Two bounds from above: the sum of temporaries, which may share their places, and the peak, coarse on small steps.
    used = min(arguments + stats.temp_size_in_bytes, stats.peak_memory_in_bytes)
    program = stats.generated_code_size_in_bytes
    return Fits(compiled, Memory(parameters, optimizer, used - parameters - optimizer, program))


def _bytes_per_device(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_SIZE = r"([\d.]+)([KMGT]?)"
_OUT_OF_MEMORY = (rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", rf"Used {_SIZE} of {_SIZE} hbm")
"""What the compiler says before it begins to place buffers, and when it has tried to; both count arguments too."""


def _out_of_memory(message: str) -> tuple[int, int]:
    """Bytes needed and available by the compiler's message; raises `UserError` with it if it is another one."""
    found = next((match for pattern in _OUT_OF_MEMORY if (match := re.search(pattern, message))), None)
    if found is None:
        raise UserError(f"the compiler fails: {first_line(Exception(message))}")
    needed, needed_unit, available, available_unit = found.groups()
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return round(float(needed) * scale[needed_unit]), round(float(available) * scale[available_unit])
