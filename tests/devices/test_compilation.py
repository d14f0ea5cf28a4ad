"""The compiler's options: known to the compilers they are for, and none where there is nothing to hide."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.config import MeshConfig
from a3jax.devices.compilation import OPTIONS, options
from a3jax.devices.mesh import AXES, make_mesh


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


SHARED = """
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
from a3jax.devices.compilation import keep_compiled_programs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
keep_compiled_programs()
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
place = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec("x"))
program = jax.jit(lambda x: (x * 3).sum()).lower(jax.ShapeDtypeStruct((2,), "float32", sharding=place))
hits.clear()
program.compile()
print(len(hits))
jax.distributed.shutdown()
"""


@pytest.mark.long
@pytest.mark.slow
def test_processes_share_their_programs_where_they_share_the_folder(tmp_path):
    """JAX writes from process 0 alone: another process finds a program if it looks where that one wrote."""

    def started(folders: list[Path]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = []
        for i, folder in enumerate(folders):
            own = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            environment = {**os.environ, **own, "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-c", SHARED, address, str(i)]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return [int(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]

    together, apart = [tmp_path / "shared"] * 2, [tmp_path / "0", tmp_path / "1"]
    started(together)
    assert started(together) == [1, 1]
    started(apart)
    assert started(apart) == [1, 0]
