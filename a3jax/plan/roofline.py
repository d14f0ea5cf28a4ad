"""How fast a step can be: from its arithmetic, its memory traffic and its communication, between two ends.

Each is taken at the full rate of the data sheet. If the three overlap perfectly, a step takes as long as the slowest: a
bound, never a forecast. If nothing overlaps, it takes as long as all of them one after the other. Products that do not run
at peak make it slower still, at either end. Communication has all links of a device to itself; a collective along one axis
of the torus reaches only that axis's.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from a3jax.config import Config, ModelConfig, Stage
from a3jax.errors import UserError
from a3jax.plan.costs import Costs, count
from a3jax.plan.hlo import Program
from a3jax.plan.topology import Topology
from a3jax.train import flops
from a3jax.train.counts import full_window, without_windows

Resource = Literal["compute", "memory", "communication"]


@dataclass(frozen=True)
class Roofline:
    """One step of a stage, from perfect overlap (its bound) to none."""

    flops: float
    """Useful FLOPs of a step over all devices, as MFU counts them, of windows that one document fills."""
    executed_flops: float
    """FLOPs of matrix products that the compiled step does on all devices, recomputed ones included."""
    hbm_bytes: int
    """Read and written by one device."""
    sent_bytes: dict[str, int]
    """Sent by one device, by kind of collective."""
    collectives: dict[str, int]
    """How many one device takes part in, by kind."""
    compute_seconds: float
    memory_seconds: float
    communication_seconds: float
    tokens: int
    """Of a step whose windows are full."""
    mfu: float
    """Useful FLOPs per second at the bound, as a fraction of the peak."""

    @property
    def bound_by(self) -> Resource:
        """What takes longest."""
        times: dict[Resource, float] = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "communication": self.communication_seconds,
        }
        return max(times, key=lambda name: times[name])

    @property
    def seconds(self) -> float:
        """Of a step at the bound."""
        return max(self.compute_seconds, self.memory_seconds, self.communication_seconds)

    @property
    def serial_seconds(self) -> float:
        """Of a step in which nothing overlaps."""
        return self.compute_seconds + self.memory_seconds + self.communication_seconds

    @property
    def serial_mfu(self) -> float:
        """`mfu` if nothing overlaps."""
        return self.mfu * self.seconds / self.serial_seconds

    def ends(self) -> dict[str, float]:
        """What follows from the two ends, for JSON."""
        return {"seconds": self.seconds, "serial_seconds": self.serial_seconds, "serial_mfu": self.serial_mfu}


def read_costs(compiled: jax.stages.Compiled) -> Costs:
    """Count what the compiled program does. Raises `UserError` if libtpu writes programs that this JAX cannot read."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        raise UserError(
            f"JAX {jax.__version__} cannot read what this libtpu compiles; pip install 'jax[tpu]=={jax.__version__}'"
        ) from None
    assert text is not None, "the TPU compiler gives the text of its programs"
    return count(Program(text))


def roofline(costs: Costs, config: Config, model: ModelConfig, stage: Stage, topology: Topology) -> Roofline:
    """Set what one device does in a step against what it can do."""
    devices, windows, length = len(topology.devices), config.schedule.windows(stage), config.data.length
    useful = windows * flops.per_window(model, stage, length, config.adapt.distill > 0, config.mask_block)
    executed, seen = costs.matmul_flops * devices, full_window(length, config.mask_block, model.local_window)
    if costs.hidden_matmuls:
        passes = _BACKWARD + (2 if config.train.remat == "full" else 1)
        looked_at = seen if _skips(stage) else without_windows(seen)
        executed += windows * passes * flops.attention_forward(model, stage, looked_at)
        executed += windows * flops.source_attention(model, seen) if config.adapt.distill else 0
    # Their products are a kernel of the compiler's own, behind which nothing is counted.
    executed += windows * flops.of_experts(model, stage, seen, config.train.remat == "full")
    compute = executed / devices / topology.flops_per_second
    memory = costs.hbm_bytes / topology.chip.hbm_bytes_per_second
    communication = sum(costs.sent_bytes.values()) / topology.chip.ici_bytes_per_second
    seconds = max(compute, memory, communication)
    return Roofline(
        flops=useful,
        executed_flops=executed,
        hbm_bytes=costs.hbm_bytes,
        sent_bytes=dict(costs.sent_bytes),
        collectives=dict(costs.collectives),
        compute_seconds=compute,
        memory_seconds=memory,
        communication_seconds=communication,
        tokens=windows * length,
        mfu=useful / seconds / devices / topology.flops_per_second,
    )


def _skips(stage: Stage) -> bool:
    """Whether local attention leaves out what is outside of its windows: only where slots follow the text."""
    return all(part.family in ("in_order", "right_to_left") for part in stage.parts)


_BACKWARD = 2.5
"""Attention's backward pass in forward passes: the scores again, and four products of their size (arXiv 2205.14135).
Kernels that go once along rows and once along keys build the scores twice and take 3.5."""
