"""What a step needs, and what the compiler says when it is too much."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from a3jax.config import Config, DataConfig, MeshConfig, TrainConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.model.parameters import count
from a3jax.plan.compile import Fits, TooLarge, _bytes_per_device, fit, model_of

GIB = 2**30


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def config(tiny):
    train = TrainConfig(compute_dtype="float32", remat="none")
    return Config("test", model=tiny(layers=2), data=DataConfig(length=16, batch=2), train=train)


class Compiling:
    """A lowered step whose compiler says how much it needs."""

    def __init__(self, peak, temporaries):
        arguments = {"argument_size_in_bytes": GIB, "output_size_in_bytes": GIB, "alias_size_in_bytes": GIB}
        rest = {"peak_memory_in_bytes": peak, "temp_size_in_bytes": temporaries, "generated_code_size_in_bytes": 7}
        self._stats = SimpleNamespace(**arguments, **rest)

    def compile(self, options):
        return self

    def memory_analysis(self):
        return self._stats


@pytest.mark.parametrize(("peak", "temporaries", "total"), [(5, 9, 5), (9, 3, 4)])
def test_memory_is_parameters_moments_and_the_rest_of_the_smaller_bound(peak, temporaries, total, config, mesh):
    """The state is updated in place, so arguments count once; temporaries may share their places, the peak may be coarse."""
    result = fit(Compiling(peak * GIB, temporaries * GIB), config, config.model, mesh)
    assert isinstance(result, Fits)
    parameters = 4 * count(config.model)
    assert result.memory.parameters == parameters
    assert result.memory.optimizer == 2 * parameters + 20  # two moments, two counts of steps, and three numbers of the guard
    assert (result.memory.total, result.memory.program) == (total * GIB + 7, 7)


class Refusing:
    """A lowered step whose compiler has one thing to say."""

    def __init__(self, message):
        self._message = message

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self._message)


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.80G) exceeds "
            "available HBM (15.75G).",
            18.80 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 1.02T of 95.74G hbm. Exceeded hbm capacity by 948.74G.\\n\\nTotal hbm usage >= 1.02T:",
            1.02 * 1024 * GIB,
            95.74 * GIB,
        ),
        ("Ran out of memory in memory space hbm. Used 512.00M of 256.50M hbm. Exceeded", 0.5 * GIB, 256.5 * 2**20),
    ],
)
def test_what_is_needed_and_available_is_read_from_the_refusal(message, needed, available, config, mesh):
    result = fit(Refusing(message), config, config.model, mesh)
    assert isinstance(result, TooLarge)
    assert result.memory.total == pytest.approx(needed, abs=1)
    assert result.available == pytest.approx(available, abs=1)
    assert result.memory.parameters == 4 * count(config.model)


@pytest.mark.parametrize(
    "message",
    [
        "INTERNAL: Mosaic failed to compile TPU kernel\nat line 3",
        "Ran out of memory in memory space vmem. Used 20.0M of 16.0M vmem.",
    ],
)
def test_other_failures_are_one_line(message, config, mesh):
    with pytest.raises(UserError, match=r"^the compiler fails: (INTERNAL|Ran out of memory in memory space vmem)") as error:
        fit(Refusing(message), config, config.model, mesh)
    assert "\n" not in str(error.value)


def test_a_shape_comes_from_the_experiment_or_its_source(config, tmp_path):
    shape = config.model
    assert model_of(config) == shape
    adapted = dataclasses.replace(shape, adapter_rank=64)
    assert model_of(dataclasses.replace(config, source=str(tmp_path / "not imported yet"))) == adapted
    assert model_of(dataclasses.replace(config, seeding="learned")).seeding == "learned"
    with pytest.raises(UserError, match="not imported yet does not exist"):
        model_of(dataclasses.replace(config, model=None, source=str(tmp_path / "not imported yet")))


def test_a_state_is_counted_as_it_is_split(config):
    """What one of several devices holds."""

    class Half:
        def shard_shape(self, shape):
            return (shape[0] // 2, *shape[1:])

    leaf = jax.ShapeDtypeStruct((8, 3), "float32")
    half = type("Leaf", (), {"shape": leaf.shape, "dtype": leaf.dtype, "sharding": Half()})()
    assert _bytes_per_device([half, half]) == 2 * 4 * 3 * 4
