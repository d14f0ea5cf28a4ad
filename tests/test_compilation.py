"""The compiler's options: known to the compilers they are for, and none where there is nothing to hide."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.compilation import OPTIONS, options
from a3jax.config import MeshConfig
from a3jax.mesh import AXES, make_mesh


def test_one_device_and_cpus_need_none():
    assert options(make_mesh(MeshConfig(), jax.devices()[:1])) == {}
    assert "cpu" not in OPTIONS


def test_those_for_gpus_are_known_to_xla():
    """Any XLA knows the names of GPU options, and refuses others."""
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    lowered.compile({option.name: option.value for option in OPTIONS["gpu"]})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile({OPTIONS["gpu"][0].name + "s": True})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
def test_weights_are_gathered_as_such_over_many_chips():
    from a3jax.plan.topology import topology

    devices = topology("v5e:8x8").devices
    mesh = jax.make_mesh((1, 1, 64, 1, 1), AXES, devices=devices, axis_types=(AxisType.Auto,) * 5)
    x, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
        for shape in [(64, 128, 4096), (4096, 1024)]
    )
    text = jax.jit(lambda x, weight: x @ weight).lower(x, weight).compile(options(mesh)).as_text()
    assert " all-gather" in text
    assert " all-reduce" not in text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
def test_no_product_is_summed_up_from_the_pieces_of_a_gathered_weight():
    """By itself, libtpu would pass the pieces around and add up 16 x 2048 x 8192 numbers for each."""
    from a3jax.plan.topology import topology

    mesh = make_mesh(MeshConfig(fsdp=8), list(topology("v6e:2x4").devices))
    x, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
        for shape in [(128, 2048, 2048), (2048, 8192)]
    )
    product = jax.jit(lambda x, weight: x @ weight, out_shardings=NamedSharding(mesh, P("fsdp"))).lower(x, weight)
    ours, theirs = (product.compile(chosen).as_text() for chosen in (options(mesh), {}))
    assert " collective-permute" in theirs
    assert " collective-permute" not in ours
    assert " all-gather" in ours
