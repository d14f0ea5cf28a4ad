"""All that one GPU or TPU is measured by, in one command of less than ten minutes: peaks, attention, steps, decoding.

python benchmarks/accelerator.py --out accelerator.json

Weights and tokens are random, so that nothing has to be brought along. What fails is told and passed over, and the JSON is
written again after every row: what was measured before a machine is taken away is there.
"""

import dataclasses
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from common import MODELS, matmul_peak, run, seconds
from jax import Array
from step import step_seconds

from a3jax import Decoding, Template, infill_batch
from a3jax.attention import attend
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import AdaptConfig, Config, DataConfig, MeshConfig, ModelConfig, Stage, TrainConfig
from a3jax.data.tokenizer import byte_codec
from a3jax.devices.mesh import make_mesh
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_order, example_keys
from a3jax.train import flops
from a3jax.train.state import random_params
from a3jax.weights.loading import Model

Part = Literal["peaks", "attention", "steps", "decoding"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """All that one GPU or TPU is measured by: peaks, attention, steps, decoding.

    python benchmarks/accelerator.py --out accelerator.json
    """

    parts: tuple[Part, ...] = get_args(Part)
    out: Path = Path("accelerator.json")
    repeats: int = 5
    small: bool = False
    """Shapes for a CPU, which show that everything runs and say nothing of speed."""


def main(options: Options) -> None:
    """Every row of every part, each written as soon as it is there."""
    device = jax.devices()[0]
    found: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "peak_data_sheet": flops.peak(device),
        "rows": [],
    }
    begun = time.perf_counter()
    for part in options.parts:
        for name, measure in PARTS[part](options, found):
            row: Row = {"part": part, "name": name}
            try:
                row |= measure()
            except Exception as error:  # one row that cannot be had takes no other along
                row["error"] = "".join(traceback.format_exception_only(error))[:2000]
            row["at"] = round(time.perf_counter() - begun)
            found["rows"].append(row)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps(row), flush=True)
            gc.collect()


def peaks(options: Options, found: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Matrix products of random numbers, and a copy in memory, reading and writing counted."""

    def product() -> Row:
        found["peak"] = matmul_peak("bfloat16", 512 if options.small else None)
        return {"TFLOP/s": found["peak"] / 1e12}

    def copy() -> Row:
        count = 2**20 if options.small else 2**31
        x = jnp.ones(count, jnp.bfloat16)
        time = seconds(lambda: _add_one(x), options.repeats)
        found["bandwidth"] = 4 * count / time
        return {"GB/s": found["bandwidth"] / 1e9}

    yield "matrix product, bfloat16", product
    yield "copy", copy


@jax.jit
def _add_one(x: Array) -> Array:
    return x + 1


@dataclass(frozen=True)
class Heads:
    """Shapes of attention."""

    batch: int
    length: int
    query: int
    kv: int
    width: int


def attention(options: Options, found: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Our paths, causal and over both streams in random groups of 8, against cuDNN's causal kernel."""
    shapes = [Heads(8, 2048, 32, 8, 64), Heads(4, 4096, 32, 8, 128), Heads(64, 512, 9, 3, 64)]
    for heads in [Heads(1, 256, 4, 2, 32)] if options.small else shapes:
        what = f"B {heads.batch}, L {heads.length}, {heads.query} and {heads.kv} heads of {heads.width}"
        for pattern in ("causal", "both streams"):
            paths = ("auto", "chunked", "cudnn") if pattern == "causal" else ("auto", "chunked", "dense")
            for path in paths:
                if path == "dense" and heads.length > 512:
                    continue
                for backward in (False, True):
                    way = f"{what}: {pattern}, {path}, {'forward and backward' if backward else 'forward'}"
                    yield way, partial(_attention, options, heads, pattern, path, backward)


def _attention(options: Options, heads: Heads, pattern: str, path: str, backward: bool) -> Row:
    B, L = heads.batch, heads.length
    if pattern == "causal":
        start_BxR = jnp.zeros((B, L), jnp.int32)
        end_BxR = jnp.tile(jnp.arange(1, L + 1, dtype=jnp.int32), (B, 1))
    else:
        order = draw_order(example_keys(0, 0, B), jnp.ones((B, L), jnp.int32), "random", 8, 0.0, "successor")
        start_BxR = jnp.concatenate([order.start, order.start], axis=1)
        end_BxR = jnp.concatenate([order.group_end, order.group_start], axis=1)
    rng = np.random.default_rng(0)

    def normal(rows: int, count: int) -> Array:
        return jnp.asarray(rng.standard_normal((B, rows, count, heads.width), np.float32), jnp.bfloat16)

    inputs = normal(start_BxR.shape[1], heads.query), normal(L, heads.kv), normal(L, heads.kv)

    def forward(query: Array, key: Array, value: Array) -> Array:
        if path == "cudnn":
            return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")
        return attend(query, key, value, start_BxR, end_BxR, path)  # type: ignore[arg-type]

    def total(*inputs: Array) -> Array:
        return (forward(*inputs).astype(jnp.float32) ** 2).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2)) if backward else forward).lower(*inputs).compile()
    time = seconds(lambda: compiled(*inputs), options.repeats)
    pairs = int(jnp.clip(end_BxR - start_BxR, 0).sum())
    work = (3.5 if backward else 1.0) * 4 * pairs * heads.query * heads.width
    return {"ms": 1e3 * time, "visible pairs": pairs, "TFLOP/s of visible pairs": work / time / 1e12}


def steps(options: Options, found: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Training steps: useful FLOPs a second against the measured peak, and the most memory in use so far."""
    if options.small:
        yield "tiny", partial(_step, options, found, "tiny", 2, 128, "random", 0, "none")
        return
    for rank, family in ((64, "random"), (0, "random"), (0, "in_order")):
        what = (
            f"{'adapters of rank 64' if rank else 'all weights'}, {'one stream' if family == 'in_order' else 'two streams'}"
        )
        for name, batch, length in (("llama_1b", 8, 2048), ("smollm2_135m", 64, 512)):
            for remat in ("dots", "none") if name == "smollm2_135m" and rank else ("dots",):
                way = f"{name}, B {batch}, L {length}: {what}, remat {remat}"
                yield way, partial(_step, options, found, name, batch, length, family, rank, remat)


def _step(
    options: Options, found: dict[str, Any], name: str, batch: int, length: int, family: Any, rank: int, remat: Any
) -> Row:
    stage = Stage(1, family, 8 if family == "random" else 1)
    model = dataclasses.replace(MODELS[name], adapter_rank=rank)
    config = Config(
        name="benchmark",
        model=MODELS[name],
        data=DataConfig(length=length, batch=batch),
        curriculum=(stage,),
        adapt=AdaptConfig(rank=rank),
        train=TrainConfig(compute_dtype="bfloat16", remat=remat, loss_chunk=4096),
    )
    time = step_seconds(config, model, options.repeats)
    work = batch * flops.per_window(model, stage, length)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    own: Row = {"seconds": time, "tokens/s": batch * length / time, "useful TFLOP/s": work / time / 1e12}
    of = {f"of {peak}": work / time / found[peak] for peak in ("peak", "peak_data_sheet") if found.get(peak)}
    return own | of | {"peak GiB so far": memory / 2**30}


def decoding(options: Options, found: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Tokens a second of new text behind a prompt, with the cache; and the weights' bytes a pass against the bandwidth."""
    for name in ("tiny",) if options.small else ("smollm2_135m", "llama_1b"):
        model = random_model(dataclasses.replace(MODELS[name], context=2048))
        for batch in (1, 2) if options.small else (1, 8, 64):
            for order in ("ar", "in_order_4"):
                yield f"{name}, {batch} texts: {order}", partial(_decode, options, found, model, batch, order)
        del model


def random_model(config: ModelConfig, dtype: str = "bfloat16") -> Model:
    """A model of a shape, with random weights."""
    weights = random_params(Config(name="benchmark", model=config), config, make_mesh(MeshConfig()))
    params = jax.tree.map(lambda x: x.astype(dtype), weights)
    plain = np.arange(config.vocab) < 256  # of the byte tokenizer, whatever the vocabulary's size
    return Model(config, params, Compute(jnp.dtype(dtype)), byte_codec(), Provenance("random"), None, plain)


def _decode(options: Options, found: dict[str, Any], model: Model, batch: int, order: str) -> Row:
    new = 16 if options.small else 128
    texts = [Template(("x" * 64, ""), (new,))] * batch

    def write() -> int:
        return infill_batch(model, texts, Decoding(order=order) if order != "ar" else Decoding())[0].forwards

    passes = write()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        write()
        times.append(time.perf_counter() - begun)
    read = sum(x.nbytes for x in jax.tree.leaves(model.params)) * passes
    return {
        "tokens/s": batch * new / min(times),
        "ms a pass": 1e3 * min(times) / passes,
        "weights read, of the bandwidth": read / min(times) / found["bandwidth"] if "bandwidth" in found else None,
    }


PARTS: dict[Part, Callable[[Options, dict[str, Any]], Iterator[tuple[str, Callable[[], Row]]]]] = {
    "peaks": peaks,
    "attention": attention,
    "steps": steps,
    "decoding": decoding,
}

if __name__ == "__main__":
    run(main, Options)
