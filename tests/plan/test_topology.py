"""Names of topologies and what is known of their chips; the shapes themselves are libtpu's to judge."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from a3jax.config import MeshConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.plan.topology import topology

libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-8", "'v5e-8' is not of the form CHIP:AxB or CHIP:AxBxC"),
        ("v5p:4x4x4x4", "is not of the form"),
        ("v5p:", "is not of the form"),
        ("v5:2x2", "chip 'v5' is unknown; chips are v4, v5e, v5p, v6e, tpu7x; did you mean 'v5p'"),
        ("h100:8x1", "chip 'h100' is unknown"),
    ],
)
def test_a_name_that_is_none_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        topology(name)
    assert "\n" not in str(error.value)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'a3jax\[tpu\]'"):
        topology("v5e:2x2")


@libtpu
@pytest.mark.parametrize(
    ("name", "devices"),
    [("v4:2x2x1", 4), ("v5e:1x1", 1), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:4x4", 16), ("tpu7x:2x2x1", 8)],
)
def test_devices_are_those_of_real_machines(name, devices):
    found = topology(name)
    assert len(found.devices) == devices  # two a chip on tpu7x, one on the others
    assert found.chips == math.prod(map(int, name.partition(":")[2].split("x")))
    assert found.devices[0].platform == "tpu"
    assert found.flops_per_second > 100e12


@libtpu
def test_several_slices_are_several_topologies_and_the_mesh_keeps_each_together():
    found = topology("v5e:2x2", slices=2)
    assert (found.name, len(found.devices)) == ("2 x v5e:2x2", 8)
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, slices=2), found.devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh\.slices = 1, but the devices lie in 2 TPU slices"):
        make_mesh(MeshConfig(), found.devices)


@libtpu
@pytest.mark.parametrize("name", ["v5p:3x4x4", "v5e:0x2"])
def test_a_shape_that_is_not_built_is_one_line(name):
    with pytest.raises(UserError, match=rf"^topology '{name}' cannot be had: ") as error:
        topology(name)
    assert "\n" not in str(error.value)


@libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compilers_own_idea_of_a_chip_is_no_other(name):
    """It estimates time with rates of its own, some of them below the data sheet's."""
    chips = topology(name)
    place = SingleDeviceSharding(chips.devices[0])

    def rate(function, shape, dtype, arguments, what):
        argument = jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        costs = jax.jit(function).lower(*[argument] * arguments).compile().cost_analysis()
        return costs[what] / costs["optimal_seconds"]

    arithmetic = rate(jnp.matmul, (8192, 8192), jnp.bfloat16, 2, "flops")
    memory = rate(lambda x: x + 1, (2**28,), jnp.float32, 1, "bytes accessed")
    assert 0.8 < arithmetic / chips.flops_per_second < 1.01
    assert 0.8 < memory / chips.chip.hbm_bytes_per_second < 1.01
