"""Meshes: what is refused, how arrays are laid out, and that a mesh changes nothing but where the work is done."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from mesh_process import MESHES

from a3jax.config import MeshConfig
from a3jax.errors import UserError
from a3jax.mesh import AXES, check_mesh, constrain, make_mesh, parameter_shardings, partition
from a3jax.model.parameters import shapes


class Devices(list):
    """So many stand-ins, for rules that look at their number only."""

    def __init__(self, count):
        super().__init__([None] * count)


class FakeMesh:
    """A mesh's shape alone."""

    def __init__(self, data=1, fsdp=1, tensor=1):
        self.shape = {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The results of `mesh_process`, by mesh."""
    out = tmp_path_factory.mktemp("mesh") / "results.npz"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("mesh_process.py")
    done = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr, "an array is put together whole on every device"
    results = {}
    with np.load(out) as arrays:
        for key in arrays:
            mesh, _, name = key.partition(":")
            results.setdefault(mesh, {})[name] = arrays[key]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_losses_gradients_and_parameters_are_those_of_one_device(simulated, name):
    expected, actual = simulated["one device"], simulated[name]
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=1e-5, atol=2e-6, err_msg=key)
    assert expected["loss1"] < expected["loss0"]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -1, -1), (-2, 1, 1), (1, 8, 0)])
def test_sizes_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r"^mesh \{.*'tensor': -?\d+\}: sizes must be positive, at most one of them -1"):
        make_mesh(MeshConfig(*sizes), Devices(8))


@pytest.mark.parametrize("sizes", [(3, -1, 1), (1, 1, 4), (2, 2, 4), (16, 1, 1), (16, -1, 1)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    with pytest.raises(UserError, match=rf"^mesh \{{'data': {sizes[0]},.* does not cover 8 devices; change mesh.data"):
        make_mesh(MeshConfig(*sizes), Devices(8))


def test_minus_one_takes_what_the_others_leave(monkeypatch):
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, **_: dict(zip(axes, sizes)))
    assert make_mesh(MeshConfig(), Devices(8)) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert make_mesh(MeshConfig(2, -1, 2), Devices(8)) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(MeshConfig(-1, 4, 2), Devices(8)) == {"data": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("mesh", "batch", "message"),
    [
        ({"tensor": 4}, 8, "kv_heads = 2 is not divisible by tensor = 4"),
        ({"tensor": 2}, 8, "ff_width = 23 is not divisible by tensor = 2"),
        ({"fsdp": 3}, 9, "width = 16 is not divisible by fsdp = 3"),
        ({"data": 2, "fsdp": 4}, 12, "the batch of one micro-batch = 12 is not divisible by data x fsdp = 8"),
    ],
)
def test_a_size_that_a_mesh_axis_cannot_split_is_named(mesh, batch, message, tiny):
    with pytest.raises(UserError, match=message):
        check_mesh(FakeMesh(**mesh), tiny(ff_width=23), batch)


def test_vocabulary_and_query_heads_must_split_too(tiny):
    with pytest.raises(UserError, match="vocab = 49 is not divisible by tensor = 2"):
        check_mesh(FakeMesh(tensor=2), tiny(vocab=49), 8)
    with pytest.raises(UserError, match="query_heads = 3 is not divisible by tensor = 2"):
        check_mesh(FakeMesh(tensor=2), tiny(query_heads=3), 8)
    check_mesh(FakeMesh(2, 2, 2), tiny(), 8)


def test_letters_become_mesh_axes():
    assert partition(("N", "D", "H", "E")) == P(None, "fsdp", "tensor", None)
    assert partition(("V", "D")) == P("tensor", "fsdp")
    with pytest.raises(ValueError, match="axes FxK use a mesh axis twice"):
        partition(("F", "K"))


def test_activations_are_split_by_batch_and_keep_their_width():
    """Nothing is done without a mesh, or on one device."""
    x_BxRxF = np.zeros((4, 3, 2), np.float32)
    assert constrain(x_BxRxF, "BxRxF") is x_BxRxF
    for axes, spec in [("BxRxF", P(("data", "fsdp"), None, "tensor")), ("BxLxD", P(("data", "fsdp"), None, None))]:
        with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2, 2), AXES)):
            (equation,) = jax.make_jaxpr(lambda x, axes=axes: constrain(x, axes))(x_BxRxF).eqns
        assert equation.params["sharding"].spec == spec
        with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1), AXES)):
            assert not jax.make_jaxpr(lambda x, axes=axes: constrain(x, axes))(x_BxRxF).eqns


def test_every_parameter_has_a_layout(tiny):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tree = shapes(tiny(qkv_bias=True, query_key_norm="full"))
    layouts = nnx.to_pure_dict(parameter_shardings(tree, mesh))
    assert layouts["blocks"]["down"].spec == P(None, "tensor", "fsdp")
    assert layouts["blocks"]["query_norm"].spec == P(None, "tensor", None)
    assert layouts["final_norm"].spec == P("fsdp")
    assert len(jax.tree.leaves(layouts)) == len(jax.tree.leaves(tree))
