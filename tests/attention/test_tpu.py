"""Splash compiled for named TPU topologies, which needs `libtpu` but no TPU. That it runs there no test here can show."""

import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from a3jax.attention import attend
from a3jax.devices.mesh import AXES, BATCH

if not importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is not installed: nothing compiles for a TPU", allow_module_level=True)

B, L, H, K = 4, 1280, 8, 4
KERNELS = ("splash_mha_fwd_segmented_residuals", "splash_mha_dq_segmented", "splash_mha_dkv_segmented")


def compiled(topology, width, sizes):
    """Text of the gradient of attention over both streams, split over fsdp, context and tensor as `sizes` say."""
    from jax.experimental import topologies

    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # compiling holds no TPU, so another process may compile too
    devices = topologies.get_topology_desc(topology, "tpu").devices
    mesh = jax.make_mesh((1, 1, *sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 5)
    heads, ranges = NamedSharding(mesh, P(BATCH, "context", "tensor")), NamedSharding(mesh, P(BATCH, "context"))

    def loss(*args):
        return attend(*args).astype(jnp.float32).sum()

    rows = [
        jax.ShapeDtypeStruct((B, length, count, width), jnp.bfloat16, sharding=heads)
        for length, count in [(2 * L, H), (L, K), (L, K)]
    ]
    ends = [jax.ShapeDtypeStruct((B, 2 * L), jnp.int32, sharding=ranges)] * 2
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*rows, *ends).compile().as_text()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize(("width", "sizes"), [(64, (2, 1, 2)), (128, (2, 1, 2)), (64, (1, 2, 2))])
def test_forward_and_backward_are_splash_kernels_and_no_scores_exist(topology, width, sizes):
    text = compiled(topology, width, sizes)
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert len(calls) == len(KERNELS)
    assert all(kernel in text for kernel in KERNELS)
    in_memory = re.sub(r"^%fused_computation.*?^\}", "", text, flags=re.MULTILINE | re.DOTALL)
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", in_memory)]
    assert max(sizes) < 2 * L * L  # the scores of one head of one example
