"""What every test shares: small models whose parameters are all non-trivial, windows of documents, and drawn orders."""

import dataclasses
import functools
import gc
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import save_model
from small_tokenizers import KINDS

import a3jax
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.curriculum.stage import Part
from a3jax.data.tokenizer import TextCodec, byte_codec, with_start
from a3jax.model.parameters import declared
from a3jax.model.two_stream import TwoStream
from a3jax.ordering import Order, arrange, draw_part
from a3jax.weights import sha256

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Most tests run small programs once, so compiling is what they cost: little of it, and no program twice. Without fusion
# emitters it takes half of the time, in one piece a tenth less. Tests that start processes with devices of their own add
# their flags to these.
COMPILE_LESS = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 12):  # from there on XLA ends a process that gives this flag
    COMPILE_LESS = f"--xla_cpu_use_fusion_emitters=false {COMPILE_LESS}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_LESS}".lstrip()
jax.config.update("jax_disable_most_optimizations", True)
if "PYTEST_XDIST_WORKER" not in os.environ:  # one folder for all workers, and for the commands that tests start
    CACHE = tempfile.TemporaryDirectory(prefix="a3jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
sha256.SETTLED_SECONDS = math.inf  # tests leave no sums of their files in the user's cache

hypothesis.settings.register_profile("untimed", deadline=None)  # the first of a kind compiles, and machines are shared
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Every compiled program takes memory maps, of which Linux gives a process 65,530, and compiling crashes without one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModelConfig]:
    """A small model's configuration; keyword arguments replace fields."""

    def make(**changes) -> ModelConfig:
        heads = {"query_heads": 4, "kv_heads": 2, "head_width": 8}
        sizes = {"vocab": 48, "width": 16, "ff_width": 24, "layers": 3, "context": 64, **heads}
        return ModelConfig(**{"family": "llama", **sizes, **changes})

    return make


@pytest.fixture(scope="session")
def network() -> Callable[..., TwoStream]:
    """A network with random matrices of unit gain, and random norms, biases and query seed."""

    def make(config: ModelConfig, seed: int = 0) -> TwoStream:
        result = nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0)))  # nothing is drawn that is not kept
        rng = np.random.default_rng(seed)

        def draw(path: tuple, variable: nnx.Variable) -> np.ndarray:
            name, shape = path[-1], variable.shape
            if name.endswith("norm"):
                return 1 + 0.3 * rng.normal(size=shape)
            if name.endswith(("bias", "seed")):
                return 0.5 * rng.normal(size=shape)
            if name in ("embedding", "head"):
                return rng.normal(size=shape) * (0.7 if name == "embedding" else 0.3)
            it = declared(variable)
            return rng.normal(size=shape) * np.prod(shape[it.stacked :][: it.inputs]) ** -0.5

        state = nnx.to_flat_state(nnx.state(result, nnx.Param))
        drawn = [(path, draw(path, variable).astype(np.float32)) for path, variable in state]
        nnx.update(result, nnx.from_flat_state([(path, jax.device_put(array)) for path, array in drawn]))
        return result

    return make


@pytest.fixture(scope="session")
def without_adapters() -> Callable[[TwoStream], TwoStream]:
    """The same network with its adapters taken out."""

    def make(net: TwoStream) -> TwoStream:
        plain = nnx.eval_shape(lambda: TwoStream(dataclasses.replace(net.config, adapter_rank=0), nnx.Rngs(0)))
        names = {path for path, _ in nnx.to_flat_state(nnx.state(plain, nnx.Param))}
        nnx.update(plain, nnx.filter_state(nnx.state(net, nnx.Param), lambda path, _: path in names))
        return plain

    return make


@pytest.fixture(scope="session")
def model_folder(tiny, network, tmp_path_factory) -> Path:
    """A model folder of a small random model with the byte tokenizer, and a context of 64 tokens."""
    config = tiny(layers=2, vocab=300, start_token=256, end_tokens=(257,))
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("api") / "model"
    save_model(out, config, params, Provenance("random"), byte_codec().files)
    return out


@pytest.fixture(scope="session")
def model(model_folder) -> a3jax.Model:
    """The model of `model_folder`."""
    return a3jax.load(str(model_folder))


@pytest.fixture(scope="session", params=KINDS)
def worded_folder(request, tiny, network, tmp_path_factory) -> Path:
    """A model folder of a small random model with a tokenizer of each kind, and a context of 64 tokens."""
    files = KINDS[request.param]()
    config = with_start(tiny(layers=2, vocab=480, start_token=1, end_tokens=(2,)), files, "tokenizer.json")
    if request.param == "byte_level":
        config = dataclasses.replace(config, start_token=0, end_tokens=(1,))
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("worded") / request.param
    save_model(out, config, params, Provenance("random"), files)
    return out


@pytest.fixture(scope="session")
def worded(worded_folder) -> a3jax.Model:
    """The model of `worded_folder`."""
    return a3jax.load(worded_folder)


@pytest.fixture(scope="session")
def codec(worded) -> TextCodec:
    """A tokenizer of each kind."""
    return worded.codec


@pytest.fixture(scope="session")
def packed() -> np.ndarray:
    """Segment numbers of three windows of 24 tokens: one document; three; two and padding."""
    return np.array([[1] * 24, [1] * 9 + [2] * 2 + [3] * 13, [1] * 14 + [2] * 6 + [0] * 4], np.int32)


@pytest.fixture(scope="session")
def draw() -> Callable[..., tuple[np.ndarray, np.ndarray, Order]]:
    """What is given, the groups, and the order of one window, drawn as in training; compiled once per family."""

    @functools.partial(jax.jit, static_argnames=("part", "seeding"))
    def compiled(key, segments, part, group_size, seeding):
        is_given, groups = draw_part(key, segments, segments < 0, part, group_size)
        return is_given, groups, arrange(groups, is_given, segments, seeding)

    def draw(key, segments, family, group_size, given=0.5, seeding="successor", **rest):
        key = jax.random.key(key) if isinstance(key, int) else key
        return jax.tree.map(
            np.asarray, compiled(key, segments, Part(family=family, given=given, **rest), group_size, seeding)
        )

    return draw


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two workers end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector, a tenth of what tracing costs, need not look at it again and again."""
    gc.freeze()
