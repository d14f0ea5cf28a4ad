"""Meshes: what is refused, how arrays are laid out, and that a mesh changes nothing but where the work is done."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from chosen import long_after
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from mesh_process import BATCH, MESHES, MODEL, SINGLE, L, one_device

from a3jax.config import Experts, MeshConfig
from a3jax.devices import mesh as meshes
from a3jax.devices.mesh import AXES, check_mesh, constrain, make_mesh, parameter_shardings, partition, scattering, two_steps
from a3jax.errors import UserError
from a3jax.model.parameters import shapes


class Devices(list):
    """So many stand-ins, for rules that look at their number only."""

    def __init__(self, count):
        super().__init__([None] * count)


class Device:
    """A stand-in that knows where it is."""

    def __init__(self, number, platform="cpu", process=0, part=None):
        self.id, self.platform, self.process_index, self.device_kind = number, platform, process, platform
        if part is not None:
            self.slice_index = part


class FakeMesh:
    """A mesh's shape alone."""

    def __init__(self, **sizes):
        self.shape = dict.fromkeys(AXES, 1) | sizes


def computed(out, names, processes):
    """The results of `mesh_process` in one process or two, by mesh."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // processes}",
        "JAX_PLATFORMS": "cpu",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for i in range(processes):
        command = [
            sys.executable,
            Path(__file__).with_name("mesh_process.py"),
            out,
            ",".join(names),
            *([address, str(i)] if processes > 1 else []),
        ]
        with out.with_suffix(f".{i}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stderr=log))
    statuses = [process.wait(300) for process in started]
    said = "".join(out.with_suffix(f".{i}.log").read_text() for i in range(processes))
    assert statuses == [0] * processes, said[-3000:]
    assert "Involuntary full rematerialization" not in said, "an array is put together whole on every device"
    results = {}
    with np.load(out) as arrays:
        for key in arrays:
            mesh, _, name = key.partition(":")
            results.setdefault(mesh, {})[name] = arrays[key]
    return results


@pytest.fixture(scope="module")
def several(request):
    """The meshes of several devices that are asked for by the tests that were selected."""
    here = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {params.get("name") for params in here}
    return [name for name in MESHES if name in asked]


@pytest.fixture(scope="module")
def simulated(several, tmp_path_factory):
    """What one process of eight devices computes."""
    names = dict.fromkeys([one_device(name) for name in several] + several)
    return computed(tmp_path_factory.mktemp("mesh") / "results.npz", names, 1)


@pytest.fixture(scope="module")
def over_two_processes(several, tmp_path_factory):
    """What two processes of four devices compute, which meet on loopback."""
    return computed(tmp_path_factory.mktemp("processes") / "results.npz", several, 2)


def assert_same(actual, expected):
    """To 5e-6 of the largest element of an array, a few dozen float32 roundings; parameters and losses to 1e-5 of each."""
    compared = expected.keys() & actual.keys() - {"temporaries", "collectives"}
    assert any(key.startswith("gradient/") for key in compared)
    for key in compared:
        bound = 5e-6 * np.abs(expected[key]).max()
        np.testing.assert_allclose(actual[key], expected[key], rtol=0, atol=bound, err_msg=key)
        if not key.startswith("gradient/"):
            np.testing.assert_allclose(actual[key], expected[key], rtol=1e-5, atol=2e-6, err_msg=key)


QUICK = ("data x fsdp x tensor", "context x tensor x fsdp", "slices x data x context")
"""Every axis, but that of experts, and every way to compute is in one of them."""
SEVERAL = long_after(len(QUICK), dict.fromkeys([*QUICK, *(name for name in MESHES if name not in SINGLE)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_losses_gradients_and_parameters_are_those_of_one_device(simulated, name):
    expected, actual = simulated[one_device(name)], simulated[name]
    gradients = {key for key in actual if key.startswith("gradient/") and not key.startswith("gradient/distilled/")}
    assert gradients == {key.replace("parameter/", "gradient/") for key in expected if key.startswith("parameter/")}
    assert actual.keys() <= expected.keys()
    assert_same(actual, expected)
    assert actual["loss1"] < actual["loss0"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_two_processes_compute_what_one_process_and_one_device_do(simulated, over_two_processes, name):
    assert over_two_processes[name].keys() == simulated[name].keys()
    assert_same(over_two_processes[name], simulated[one_device(name)])
    assert_same(over_two_processes[name], simulated[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["context x tensor x fsdp"])
def test_one_stream_evaluation_adapters_and_distillation_were_compared_too(simulated, name):
    assert {"one_stream", "held_out", "distilled", "gradient/distilled/blocks/gate_out"} <= simulated[name].keys()


@pytest.mark.long
@pytest.mark.parametrize("name", ["context"])
def test_a_window_split_over_devices_takes_as_much_less_memory(simulated, name):
    """Keys and values of one layer and gradients of the weights are what does not shrink with the rows."""
    assert simulated[name]["temporaries"] < simulated[one_device(name)]["temporaries"] / 5


@pytest.mark.long
@pytest.mark.parametrize("name", ["context"])
def test_of_a_split_window_only_keys_and_values_are_gathered(simulated, name):
    """The only arrays sent with as many numbers as there are slots, but for weights, are of keys' and values' shape."""
    sent = json.loads(str(simulated[name]["collectives"]))
    rows = [(kind, shape) for kind, shape in sent if np.prod(shape) >= BATCH * L and not is_a_weight(shape)]
    assert {kind for kind, _ in rows} == {"all-gather", "reduce-scatter"}
    assert {tuple(shape[-2:]) for _, shape in rows} == {(MODEL.kv_heads, MODEL.head_width)}


def is_a_weight(shape):
    """Whether a parameter has this shape, with or without its layers, or transposed."""
    m = MODEL
    heads, keys = [m.query_heads, m.head_width], [m.kv_heads, m.head_width]
    known = [[], [m.width], heads, keys, [m.vocab, m.width], [m.width, m.ff_width], [m.width, *heads], [m.width, *keys]]
    return sorted(shape) in map(sorted, known)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -1, -1), (-2, 1, 1), (1, 8, 0), (1, 1, 1, 0), (1, -1, 1, -1)])
def test_sizes_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r"^mesh \{.*'tensor': -?\d+\}: sizes must be positive, at most one of them -1"):
        make_mesh(MeshConfig(*sizes), Devices(8))


@pytest.mark.parametrize("sizes", [(3, -1, 1), (1, 1, 4), (2, 2, 4), (16, 1, 1), (16, -1, 1), (1, 2, 2, 4), (1, 2, 1, 2, 3)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    with pytest.raises(
        UserError, match=rf"^mesh \{{.*'data': {sizes[0]},.* does not cover 8 devices; change mesh.slices/data"
    ):
        make_mesh(MeshConfig(*sizes), Devices(8))


def test_what_keeps_the_axes_from_the_devices_is_told_as_it_was_given():
    with pytest.raises(
        UserError, match=r"'data': 3, 'expert': 1, 'fsdp': -1, .*'tensor': 2\} does not cover 8 .*: 6 does not divide 8$"
    ):
        make_mesh(MeshConfig(data=3, tensor=2), Devices(8))
    with pytest.raises(
        UserError, match=r"'data': 16, 'expert': 1, 'fsdp': 1, .* does not cover 8 devices; .*: they multiply to 16$"
    ):
        make_mesh(MeshConfig(16, 1), Devices(8))


def test_minus_one_takes_what_the_others_leave(monkeypatch):
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, **_: {a: n for a, n in zip(axes, sizes) if n > 1})
    assert make_mesh(MeshConfig(), Devices(8)) == {"fsdp": 8}
    assert make_mesh(MeshConfig(2, -1, 2), Devices(8)) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(MeshConfig(-1, 4, 2), Devices(8)) == {"fsdp": 4, "tensor": 2}
    assert make_mesh(MeshConfig(fsdp=2, context=-1), Devices(8)) == {"fsdp": 2, "context": 4}
    assert make_mesh(MeshConfig(fsdp=2, slices=-1), Devices(8)) == {"slices": 4, "fsdp": 2}


def numbers(mesh):
    """Of the devices, in the mesh's order, axes of size 1 left out."""
    return np.vectorize(lambda device: device.id)(mesh.devices).squeeze().tolist()


def laid(monkeypatch, config, devices, make=None):
    """The mesh over stand-ins, which JAX's own class would refuse; `make` in place of JAX's `make_mesh`."""

    @dataclasses.dataclass
    class Plain:
        devices: np.ndarray
        axis_names: tuple
        axis_types: tuple

    monkeypatch.setattr(meshes, "Mesh", Plain)

    def in_order(sizes, axes, devices, axis_types):
        return Plain(np.reshape(devices, sizes), axes, axis_types)

    monkeypatch.setattr(jax, "make_mesh", make or in_order)
    return numbers(make_mesh(config, devices))


def test_slices_are_the_parts_that_the_slow_network_joins(monkeypatch):
    """Devices come interleaved: what lies together must be found by what they say of themselves."""
    processes = [Device(n, "gpu", process=n % 2) for n in range(8)]
    assert laid(monkeypatch, MeshConfig(fsdp=2, tensor=2, slices=2), processes) == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    one_process = [Device(n) for n in range(8)]
    assert laid(monkeypatch, MeshConfig(fsdp=4, slices=2), one_process) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    two_a_slice = [Device(n, "gpu", process=n // 2) for n in range(8)]
    assert laid(monkeypatch, MeshConfig(fsdp=4, slices=2), two_a_slice) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("per_process", [1, 4])
def test_gpus_of_several_hosts_are_laid_out_host_by_host(per_process, monkeypatch):
    """JAX counts a host's GPUs as a slice, and its own `make_mesh` refuses several."""
    make = jax.make_mesh
    gpus = [Device(n, "gpu", process=n // per_process, part=n // 4) for n in (6, 7, 4, 5, 0, 1, 2, 3)]
    with pytest.raises(ValueError, match="multi-slice"):
        make((1, 8), ("data", "fsdp"), devices=gpus)
    assert laid(monkeypatch, MeshConfig(), gpus, make) == list(range(8))
    assert laid(monkeypatch, MeshConfig(fsdp=4, data=2), gpus, make) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert laid(monkeypatch, MeshConfig(fsdp=4, slices=2), gpus, make) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_slices_that_the_devices_do_not_have_are_refused():
    tpus = [Device(n, "tpu", part=n // 4) for n in range(8)]
    for slices, fsdp in [(1, 8), (4, 2)]:
        with pytest.raises(
            UserError, match=f"mesh.slices = {slices}, but the devices lie in 2 TPU slices; set mesh.slices to 2"
        ):
            make_mesh(MeshConfig(fsdp=fsdp, slices=slices), tpus)
    with pytest.raises(UserError, match=r"^mesh\.slices = 2 does not divide the 3 processes that hold the devices"):
        make_mesh(MeshConfig(fsdp=3, slices=2), [Device(n, "gpu", process=n // 2) for n in range(6)])


@pytest.mark.parametrize(
    ("mesh", "batch", "message"),
    [
        ({"tensor": 4}, 8, "kv_heads = 2 is not divisible by tensor = 4"),
        ({"tensor": 2}, 8, "ff_width = 23 is not divisible by tensor = 2"),
        ({"fsdp": 3}, 9, "width = 16 is not divisible by fsdp x context = 3"),
        ({"fsdp": 2, "context": 16}, 8, "width = 16 is not divisible by fsdp x context = 32"),
        ({"context": 8}, 8, "data.length = 24 is not divisible by 2 x context = 16"),
        (
            {"data": 2, "fsdp": 4},
            12,
            "the batch of one micro-batch = 12 is not divisible by slices x data x expert x fsdp = 8",
        ),
        ({"expert": 2}, 8, "mesh.expert is 2, but the model has no experts; take mesh.data or mesh.fsdp"),
        ({"slices": 2}, 7, "the batch of one micro-batch = 7 is not divisible by slices x data x expert x fsdp = 2"),
    ],
)
def test_a_size_that_a_mesh_axis_cannot_split_is_named(mesh, batch, message, tiny):
    with pytest.raises(UserError, match=message):
        check_mesh(FakeMesh(**mesh), tiny(ff_width=23), batch, 24)


def test_vocabulary_and_query_heads_must_split_too(tiny):
    with pytest.raises(UserError, match="vocab = 49 is not divisible by tensor = 2"):
        check_mesh(FakeMesh(tensor=2), tiny(vocab=49), 8, 24)
    with pytest.raises(UserError, match="query_heads = 3 is not divisible by tensor = 2"):
        check_mesh(FakeMesh(tensor=2), tiny(query_heads=3, kv_heads=1), 8, 24)
    with pytest.raises(UserError, match="experts = 3 is not divisible by expert = 2"):
        check_mesh(FakeMesh(expert=2), tiny(experts=Experts(3, 1)), 8, 24)
    check_mesh(FakeMesh(slices=2, data=2, fsdp=2, tensor=2, context=4), tiny(), 8, 24)


def test_letters_become_mesh_axes():
    assert partition(("N", "D", "H", "E")) == P(None, ("fsdp", "context"), "tensor", None)
    assert partition(("V", "D")) == P("tensor", ("fsdp", "context"))
    with pytest.raises(ValueError, match="axes FxK use a mesh axis twice"):
        partition(("F", "K"))


def test_activations_are_split_by_batch_and_rows_and_keep_their_width():
    """Nothing is done without a mesh, or on one device."""
    x_BxRxF = np.zeros((4, 4, 2), np.float32)
    batch = ("slices", "data", "expert", "fsdp")
    assert constrain(x_BxRxF, "BxRxF") is x_BxRxF
    for axes, spec in [("BxRxF", P(batch, "context", "tensor")), ("BxLxD", P(batch, "context", None))]:
        with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2, 1, 2, 2, 2), AXES)):
            (equation,) = jax.make_jaxpr(lambda x, axes=axes: constrain(x, axes))(x_BxRxF).eqns
        assert equation.params["sharding"].spec == spec
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,) * len(AXES), AXES)):
            assert not jax.make_jaxpr(lambda x, axes=axes: constrain(x, axes))(x_BxRxF).eqns


@pytest.mark.parametrize(
    ("devices", "steps"), [(1, (1, 1)), (2, (2, 1)), (5, (5, 1)), (6, (3, 2)), (8, (4, 2)), (64, (8, 8)), (128, (16, 8))]
)
def test_a_sum_over_devices_is_made_in_two_steps_as_equal_as_can_be(devices, steps):
    assert two_steps(devices) == steps


def test_the_gradient_of_a_weight_is_divided_in_two_steps_into_the_weights_own_layout():
    """A first step over 8 of 16 devices, which is not seen in the mesh; that sums are right, the meshes above show."""

    def loss(weight_DxF):
        return scattering(weight_DxF, ("D", "F")).sum()

    weight_DxF = np.zeros((32, 4), np.float32)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2, 1, 8, 2, 2), AXES)):
        equations = jax.make_jaxpr(jax.grad(loss))(weight_DxF).eqns
    laid = [one.params["sharding"] for one in equations if one.primitive.name == "sharding_constraint"]
    assert [one.spec for one in laid] == [P("first", "tensor"), P(("fsdp", "context"), "tensor")]
    assert laid[0].mesh.shape == {"slices": 1, "data": 2, "expert": 1, "first": 4, "then": 4, "tensor": 2}
    assert not [one for one in jax.make_jaxpr(jax.grad(loss))(weight_DxF).eqns if one.primitive.name == "sharding_constraint"]


def test_every_parameter_has_a_layout(tiny):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tree = shapes(tiny(qkv_bias=True, query_key_norm="full"))
    layouts = nnx.to_pure_dict(parameter_shardings(tree, mesh))
    assert layouts["blocks"]["down"].spec == P(None, "tensor", ("fsdp", "context"))
    assert layouts["blocks"]["query_norm"].spec == P(None, "tensor", None)
    assert layouts["final_norm"].spec == P(("fsdp", "context"))
    assert len(jax.tree.leaves(layouts)) == len(jax.tree.leaves(tree))
