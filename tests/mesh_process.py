"""Two training steps over 8 simulated devices for several meshes; run by test_mesh.py in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python mesh_process.py OUT.npz

For every mesh the file holds the losses and gradient norms of both steps and the parameters after them.
"""

import sys

import jax
import numpy as np
from flax import nnx

from a3jax import mesh as meshes
from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.train import step as steps

MESHES = {
    "one device": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 2),
    "all": (2, 2, 2),
}
"""Devices along data, fsdp, tensor. The last also uses chunked attention and two micro-batches."""
MODEL = ModelConfig("llama", 32, 16, 24, 2, 4, 2, 8, 24, qkv_bias=True, query_key_norm="full")
BATCH, L = 16, 24


def run(name):
    """Everything worth comparing after two steps on one mesh."""
    axes = MeshConfig(*MESHES[name])
    mesh = meshes.make_mesh(axes, jax.devices()[: int(np.prod(MESHES[name]))])
    config = Config(
        name=name,
        model=MODEL,
        mesh=axes,
        data=DataConfig(length=L, batch=BATCH),
        curriculum=(Stage(2, "random", 4, 0.5),),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=0, schedule="constant"),
        train=TrainConfig(
            compute_dtype="float32",
            attention="chunked" if name == "all" else "dense",
            accumulate=2 if name == "all" else 1,
            loss_chunk=64,
            remat="none",
        ),
    )
    meshes.check_mesh(mesh, MODEL, BATCH // config.train.accumulate)
    rng = np.random.default_rng(0)
    segments = np.where(np.arange(L) < rng.integers(4, L, (BATCH, 1)), 1, rng.integers(0, 2, (BATCH, 1)) * 2).astype(np.int32)
    batch = {"tokens": rng.integers(0, MODEL.vocab, (BATCH, L)).astype(np.int32), "segments": segments}
    with jax.set_mesh(mesh):
        state = steps.init_state(config, steps.random_params(config, MODEL, mesh), MODEL, mesh)
        step = steps.make_step(config, MODEL, config.curriculum[0], mesh)
        placed = jax.device_put(batch, meshes.batch_sharding(mesh))
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        state, first = step(state, placed)
        state, second = step(state, placed)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout, "the layout is kept"
    parts = {"D": axes.fsdp, "F": axes.tensor, "H": axes.tensor, "K": axes.tensor, "V": axes.tensor}
    found = {}
    for path, leaf in nnx.to_flat_state(state.params):
        letters = leaf.get_metadata()["axes"]
        local = leaf[...].addressable_shards[0].data.shape
        assert local == tuple(n // parts.get(a, 1) for n, a in zip(leaf.shape, letters)), (path, "is not split as declared")
        found["/".join(path)] = np.asarray(leaf[...])
    for number, metrics in enumerate((first, second)):
        found |= {f"{field}{number}": np.asarray(value) for field, value in metrics._asdict().items()}
    return {f"{name}:{key}": value for key, value in found.items()}


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    results = {}
    for name in MESHES:
        results |= run(name)
    np.savez(sys.argv[1], **results)
