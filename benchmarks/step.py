"""Time of a training step: two streams against one, against the machine's matmul peak, and against PyTorch.

python benchmarks/step.py --batch 4 --length 512 --torch
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from common import MODELS, matmul_peak, run, seconds, show

from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, Stage, TrainConfig
from a3jax.devices.mesh import batch_sharding, make_mesh
from a3jax.train import flops
from a3jax.train.compiled import compile_step
from a3jax.train.state import init_state, random_params


@dataclass(frozen=True)
class Options:
    """Time of a training step: two streams against one, the matmul peak, and PyTorch.

    python benchmarks/step.py --batch 4 --length 512 --torch
    """

    model: Literal["tiny", "llama_6m", "smollm2_135m", "llama_1b"] = "smollm2_135m"
    batch: int = 4
    length: int = 512
    group_size: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "dots"
    attention: Literal["auto", "dense", "chunked", "splash", "flash"] = "auto"
    block: int | None = None
    """Of `splash`."""
    repeats: int = 3
    torch: bool = False
    """Also the same model in PyTorch (CPU) with AdamW: two streams by the code of our exports, which has dense masks, and one
    by transformers' Llama. All take turns."""
    json: bool = False


def ours(options: Options, stage: Stage) -> Callable[[], Any]:
    """What makes one step of `stage`."""
    config = Config(
        name="benchmark",
        model=MODELS[options.model],
        data=DataConfig(length=options.length, batch=options.batch),
        curriculum=(stage,),
        train=TrainConfig(
            compute_dtype=options.dtype, remat=options.remat, attention=options.attention, attention_block=options.block
        ),
    )
    return stepping(config, MODELS[options.model])


def step_seconds(config: Config, model: ModelConfig, repeats: int) -> float:
    """Seconds of one step of an experiment of one stage."""
    return seconds(stepping(config, model), repeats)


def stepping(config: Config, model: ModelConfig) -> Callable[[], Any]:
    """What makes a step of an experiment of one stage, from random weights, on windows of random tokens without padding."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        state = init_state(config, random_params(config, model, mesh), model, mesh)
        compiled = compile_step(config, model, config.curriculum[0], mesh)
        shape = (config.data.batch, config.data.length)
        tokens = np.random.default_rng(0).integers(0, model.vocab, shape, np.int32)
        put = functools.partial(jax.device_put, device=batch_sharding(mesh))
        batch = {"tokens": put(tokens), "segments": put(np.ones_like(tokens))}

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return step


def plain_torch(options: Options) -> Callable[[], None]:
    """What makes one two-stream step of the same shape in PyTorch."""
    import torch

    from a3jax.export.twin.configuration_a3 import A3Config
    from a3jax.export.twin.modeling_a3 import A3ForCausalLM

    ranks = torch.stack([torch.randperm(options.length) for _ in range(options.batch)])
    return _torch_step(options, A3ForCausalLM(A3Config(**_fields(MODELS[options.model]))), groups=ranks // options.group_size)


def transformers_llama(options: Options) -> Callable[[], None]:
    """What makes one step of the same shape from left to right in transformers."""
    import transformers

    return _torch_step(options, transformers.LlamaForCausalLM(transformers.LlamaConfig(**_fields(MODELS[options.model]))))


def _torch_step(options: Options, model: Any, **inputs: Any) -> Callable[[], None]:
    import torch

    model = model.to(getattr(torch, options.dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    ids = torch.randint(0, model.config.vocab_size, (options.batch, options.length))

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids, **inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": model.ff_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.query_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "tie_word_embeddings": model.tied_head,
    }


def main(options: Options) -> None:
    """Measure and show."""
    model = MODELS[options.model]
    one, two = Stage(1, "in_order", 1), Stage(1, "random", options.group_size)
    rows: list[dict[str, Any]] = []
    measured = {"two streams": lambda: ours(options, two), "one stream": lambda: ours(options, one)}
    if options.torch:
        measured["PyTorch, two streams"] = lambda: plain_torch(options)
        measured["transformers' Llama, one stream"] = lambda: transformers_llama(options)
    steps = {name: make() for name, make in measured.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    peak = matmul_peak(options.dtype)
    for turn in range(1 + options.repeats):
        for name, step in steps.items():
            begun = time.perf_counter()
            jax.block_until_ready(step())
            if turn:  # the first compiles
                taken[name].append(time.perf_counter() - begun)
        peak = max(peak, matmul_peak(options.dtype))  # machines vary while they work
    peak *= len(jax.devices())
    times = {name: statistics.median(each) for name, each in taken.items()}
    for name, median in times.items():
        work = options.batch * flops.per_window(model, one if name.endswith("one stream") else two, options.length)
        rate = work / median
        rows.append(
            {"step": name, "seconds": median, "against two streams": median / times["two streams"],
             "GFLOP": work / 1e9, "GFLOP/s": rate / 1e9, "of matmul peak": rate / peak}
        )  # fmt: skip
    rows.append({"step": "matmul peak", "seconds": "", "against two streams": "", "GFLOP": "",
                 "GFLOP/s": peak / 1e9, "of matmul peak": 1.0})  # fmt: skip
    show(
        f"{options.model}, B {options.batch}, L {options.length}, S {options.group_size}, {options.dtype}", rows, options.json
    )


if __name__ == "__main__":
    run(main, Options)
