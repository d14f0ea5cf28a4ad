"""Two training steps over 8 simulated devices for several meshes; run by test_mesh.py in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python mesh_process.py OUT.npz

For every mesh the file holds the losses and gradient norms of both steps, the gradients of the first and the parameters
after the second; for those that split windows, the shapes that the compiled step gathers and adds up.
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import optax
from flax import nnx

from a3jax import mesh as meshes
from a3jax.compilation import options
from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.evaluate.likelihood import HeldOut
from a3jax.model.parameters import graph
from a3jax.train import step as steps
from a3jax.train.compiled import lower

MESHES = {
    "one device": MeshConfig(fsdp=1),
    "data": MeshConfig(data=8, fsdp=1),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(fsdp=1, tensor=2),
    "data x fsdp x tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "context": MeshConfig(fsdp=1, context=8),
    "context x tensor x fsdp": MeshConfig(fsdp=2, context=2, tensor=2),
    "slices x data x context": MeshConfig(data=2, fsdp=1, context=2, slices=2),
}
SPLIT_IN_TWO = ("data x fsdp x tensor", "slices x data x context")
"""Meshes that also compute chunked attention and two micro-batches."""
MODEL = ModelConfig("llama", 40, 16, 24, 2, 4, 2, 6, 32, qkv_bias=True, query_key_norm="full")
BATCH, L = 8, 32
STAGES = {"two streams": Stage(2, "random", 4, 0.5), "one stream": Stage(2, "in_order", 1)}
ORDERS = ("ar", "random_4")


def experiment(name, **train):
    """What runs on the mesh `name`. AdamW's `eps` is large, so that an update is a smooth function of the gradient."""
    in_two = name in SPLIT_IN_TWO
    return Config(
        name="mesh",
        model=MODEL,
        mesh=MESHES[name],
        data=DataConfig(length=L, batch=BATCH),
        curriculum=tuple(STAGES.values()),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup=0, schedule="constant", eps=1e-2, clip=1e9),
        train=TrainConfig(
            compute_dtype="float32",
            attention="chunked" if in_two else "dense",
            accumulate=2 if in_two else 1,
            loss_chunk=64,
            remat="none",
            **train,
        ),
    )


def windows():
    """Windows of one to five documents, some with padding."""
    rng = np.random.default_rng(0)
    starts = rng.random((BATCH, L)) < np.linspace(0, 0.2, BATCH)[:, None]
    segments = 1 + np.cumsum(starts, axis=1)
    segments[::2, rng.integers(L - 6, L) :] = 0
    return {"tokens": rng.integers(0, MODEL.vocab, (BATCH, L)).astype(np.int32), "segments": segments.astype(np.int32)}


def devices(mesh):
    """As many as the mesh needs."""
    return jax.devices()[: int(np.prod(dataclasses.astuple(mesh)))]


def run(name):
    """Everything worth comparing after two steps of each kind on one mesh."""
    config = experiment(name)
    mesh = meshes.make_mesh(config.mesh, devices(config.mesh))
    meshes.check_mesh(mesh, MODEL, BATCH // config.train.accumulate, L)
    found = {}
    with jax.set_mesh(mesh):
        placed = jax.device_put(windows(), meshes.batch_sharding(mesh))
        for kind, stage in STAGES.items():
            state = steps.init_state(config, steps.random_params(config, MODEL, mesh), MODEL, mesh)
            layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            step = lower(config, MODEL, stage, mesh).compile(options(mesh))
            if config.mesh.context > 1:
                found[f"{kind}/collectives"] = np.array(json.dumps(collectives(step.as_text())))
            state, first = step(state, placed)
            (moments,) = optax.tree.get_all_with_path(state.optimizer, "mu")
            for path, moment in nnx.to_flat_state(moments[1]):
                found[f"{kind}/gradient/{'/'.join(path)}"] = np.asarray(moment[...]) / (1 - config.optimizer.b1)
            state, second = step(state, placed)
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout, "the layout is kept"
            for path, leaf in nnx.to_flat_state(state.params):
                check_layout(path, leaf, config.mesh)
                found[f"{kind}/parameter/{'/'.join(path)}"] = np.asarray(leaf[...])
            for number, metrics in enumerate((first, second)):
                found |= {f"{kind}/{field}{number}": np.asarray(value) for field, value in metrics._asdict().items()}
        put = lambda array: jax.device_put(array, meshes.batch_sharding(mesh))  # noqa: E731
        held_out = HeldOut(graph(MODEL), MODEL, windows(), steps.compute(config), BATCH, put)
        found |= {f"held out/{order}": np.array(nll) for order, nll in held_out.nll(state.params, ORDERS).items()}
    return {f"{name}:{key}": value for key, value in found.items()}


def check_layout(path, leaf, mesh):
    """Every device holds just the part that the parameter's letters say."""
    parts = {"D": mesh.fsdp * mesh.context, "F": mesh.tensor, "H": mesh.tensor, "K": mesh.tensor, "V": mesh.tensor}
    local = leaf[...].addressable_shards[0].data.shape
    letters = leaf.get_metadata()["axes"]
    assert local == tuple(n // parts.get(a, 1) for n, a in zip(leaf.shape, letters)), (path, "is not split as declared")


def collectives(text):
    """Shapes of floats that collectives of a compiled program return, by kind."""
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    return [
        [kind, [int(size) for size in shape.split(",") if size]]
        for result, kind in re.findall(pattern, text)
        for shape in re.findall(r"(?:f32|bf16)\[([\d,]*)\]", result)
    ]


def temporaries(context):
    """Bytes of temporaries on each of `context` devices of a step over windows of 2048 tokens."""
    config = experiment("one device")
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(fsdp=1, context=context),
        data=DataConfig(length=2048, batch=1),
        train=dataclasses.replace(config.train, attention="chunked", remat="full"),
    )
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:context])
    return lower(config, MODEL, STAGES["two streams"], mesh).compile(options(mesh)).memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    results = {f"temporaries:{context}": np.array(temporaries(context)) for context in (1, 4)}
    for name in MESHES:
        results |= run(name)
    np.savez(sys.argv[1], **results)
