"""The compiler's options: known to the compilers they are for, and none where there is nothing to hide."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.config import MeshConfig
from a3jax.devices.compilation import OPTIONS, options
from a3jax.devices.mesh import AXES, make_mesh, scattering
from a3jax.plan.costs import count
from a3jax.plan.hlo import Program


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
    mesh = jax.make_mesh((1, 1, 1, 64, 1, 1), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))
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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
@pytest.mark.parametrize("name", ["v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_weights_are_gathered_while_arithmetic_runs(name):
    """And each gather, which the program then names in several places, is counted once."""
    from a3jax.plan.costs import count
    from a3jax.plan.hlo import Program
    from a3jax.plan.topology import topology

    layers, width, inner = 4, 4096, 8192
    mesh = make_mesh(MeshConfig(fsdp=-1), list(topology(name).devices))
    split = NamedSharding(mesh, P("fsdp"))
    x, up, down = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in [
            ((8, 4096, width), P("fsdp")),
            ((layers, width, inner), P(None, "fsdp")),
            ((layers, inner, width), P(None, None, "fsdp")),
        ]
    )

    def run(x, up, down):
        def layer(x, weights):
            return jax.lax.with_sharding_constraint(x + jax.nn.silu(x @ weights[0]) @ weights[1], split), None

        return jax.lax.scan(layer, x, (up, down))[0]

    text = jax.jit(run, out_shardings=split).lower(x, up, down).compile(options(mesh)).as_text()
    assert "calls=%async_collective_fusion" in text
    gathered = 2 * width * inner * 2 // mesh.size * (mesh.size - 1)
    assert layers * gathered <= count(Program(text)).sent_bytes["all-gather"] <= (layers + 1) * gathered


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
@pytest.mark.parametrize(("topology_name", "devices"), [("v5p:2x2x2", 8), ("v6e:4x4", 16)])
def test_a_gradient_is_summed_to_those_who_keep_it(topology_name, devices):
    """By itself, libtpu gives the sum of all to all, which sends twice as much."""
    from a3jax.plan.topology import topology

    mesh = make_mesh(MeshConfig(fsdp=devices), list(topology(topology_name).devices))
    laid = NamedSharding(mesh, P("fsdp"))
    x, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=laid) for shape in [(4096, 2048), (2048, 4096)])

    def sent(lay):
        def loss(weight, x):
            return jnp.sum(jnp.sin(x @ lay(weight)))

        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(loss), out_shardings=laid).lower(weight, x)
        return count(Program(step.compile(options(mesh)).as_text())).sent_bytes

    ideal = 2048 * 4096 * 2 * (devices - 1) // devices
    theirs, ours = sent(lambda weight: weight), sent(lambda weight: scattering(weight, ("D", "F")))
    assert theirs["all-reduce"] > 1.9 * ideal
    assert ours["reduce-scatter"] > 0.7 * ideal
    assert sum(ours.values()) - ours["all-gather"] < 1.3 * ideal
