"""Two training steps over 8 simulated devices for several meshes; run by test_mesh.py in a process of its own, or in two.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python mesh_process.py OUT.npz MESH,...
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python mesh_process.py OUT.npz MESH,... HOST:PORT PROCESS

Two processes stay together from mesh to mesh, and the first of them writes the file. For every mesh it holds the losses and
gradient norms of both steps, the gradients of the first, the parameters after the second, the bytes of temporaries on a
device, and the shapes that the compiled step sends around.
"""

import dataclasses
import functools
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
from flax import nnx

from a3jax.config import Config, DataConfig, Experts, MeshConfig, ModelConfig, OptimizerConfig, Rope, Stage, TrainConfig
from a3jax.curriculum.stage import Part
from a3jax.devices import mesh as meshes
from a3jax.likelihood.held_out import HeldOut
from a3jax.model.network import Network
from a3jax.model.parameters import shapes
from a3jax.ordering import example_keys
from a3jax.train import state as states
from a3jax.train.compiled import lower
from a3jax.train.objectives import compute_of
from a3jax.train.objectives.any_order import AnyOrder

MESHES = {
    "one device": MeshConfig(fsdp=1),
    "data": MeshConfig(data=8, fsdp=1),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(fsdp=1, tensor=2),
    "data x fsdp x tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "context": MeshConfig(fsdp=1, context=8),
    "context x tensor x fsdp": MeshConfig(fsdp=2, context=2, tensor=2),
    "context x tensor": MeshConfig(fsdp=1, context=4, tensor=2),
    "slices x data x context": MeshConfig(data=2, fsdp=1, context=2, slices=2),
    "slices x fsdp x context": MeshConfig(fsdp=2, context=2, slices=2),
    "experts on one device": MeshConfig(fsdp=1),
    "expert x fsdp x tensor": MeshConfig(expert=2, fsdp=2, tensor=2),
    "expert x context x tensor": MeshConfig(expert=2, fsdp=1, context=2, tensor=2),
    "local layers on one device": MeshConfig(fsdp=1),
    "local layers over context x tensor x fsdp": MeshConfig(fsdp=2, context=2, tensor=2),
    "local layers over slices x data x context": MeshConfig(data=2, fsdp=1, context=2, slices=2),
}
"""Over two processes, the outermost axis that a mesh has spans both: each of the five does so in one of them at least."""
IN_TWO = ("data x fsdp x tensor", "slices x data x context", "local layers over slices x data x context")
"""Meshes that compute chunked attention and two micro-batches."""
WITH_EXPERTS = ("experts on one device", "expert x fsdp x tensor", "expert x context x tensor")
"""Meshes over which a model with experts is computed in place of `MODEL`."""
WITH_LOCAL_LAYERS = tuple(name for name in MESHES if name.startswith("local layers"))
"""Meshes over which a model with local attention is."""
SINGLE = ("one device", "experts on one device", "local layers on one device")
"""What the others are compared with."""
THOROUGH = ("one device", "context x tensor x fsdp")
"""Meshes that also draw their own parameters, and on which one stream, held-out windows and adapters are computed."""
MODEL = ModelConfig("llama", 40, 16, 24, 2, 4, 2, 6, 32, qkv_bias=True, query_key_norm="full", post_norm=True, pre_norm=False)
EXPERTS = ModelConfig(
    *("llama", 40, 16, 24, 2, 4, 2, 6, 32),
    qkv_bias=True,
    experts=Experts(4, 2, balance=0.1, biases=True),
    attention_sinks=True,
    activation="gelu_sigmoid",
    gate_limit=1.0,
)
LOCAL = ModelConfig(
    *("llama", 40, 16, 24, 3, 4, 2, 6, 32),
    local_layers=(0, 1),
    local_window=7,
    local_rope=Rope(500.0),
    unrotated_layers=(1,),
    rotary_width=4,
    tied_head=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    query_key_norm="head",
    norm="rms_offset",
    post_norm=True,
    activation="gelu_tanh",
    embedding_scale=2.0,
    residual_scale=0.5,
    attention_scale=0.5,
    attention_cap=3.0,
    logit_divisor=2.0,
    logit_cap=5.0,
)
"""What Gemmas, Granite, Phi and SmolLM3 have beyond the others."""
BATCH, L = 8, 32
MIXTURE = (
    Part(2.0, "random", 4, 0.5),
    Part(1.0, "spans", 3, sizes="geometric"),
    Part(1.0, "right_to_left", 2, prefix=0.5, sizes="uniform"),
)
ADAPTED = dataclasses.replace(MODEL, adapter_rank=2, seeding="two_sided")
STAGE, ONE_STREAM, HELD_OUT = Stage(2, mixture=MIXTURE), Stage(2, "in_order", 1), "random_4"


def model_of(name):
    """The model that the mesh `name` computes."""
    return EXPERTS if name in WITH_EXPERTS else LOCAL if name in WITH_LOCAL_LAYERS else MODEL


def one_device(name):
    """The mesh of one device that computes the same as the mesh `name`."""
    return next(single for single in SINGLE if model_of(single) == model_of(name))


def experiment(name):
    """What runs on the mesh `name`.

    AdamW's `eps` is of the size of gradients, so that an update is a smooth function of them: it moves by no more than
    learning rate / `eps` with a rounding, where else a gradient near 0 would be divided by itself.
    """
    in_two = name in IN_TWO
    return Config(
        name="mesh",
        model=model_of(name),
        mesh=MESHES[name],
        data=DataConfig(length=L, batch=BATCH),
        curriculum=(STAGE,),
        optimizer=OptimizerConfig(peak_lr=0.3, warmup=0, schedule="constant", eps=10.0, clip=1e9),
        train=TrainConfig(
            compute_dtype="float32",
            attention="chunked" if in_two else "dense",
            accumulate=2 if in_two else 1,
            loss_chunk=64,
            remat="none",
        ),
    )


def windows():
    """Windows of one to five documents, some with padding."""
    rng = np.random.default_rng(0)
    starts = rng.random((BATCH, L)) < np.linspace(0, 0.2, BATCH)[:, None]
    segments = 1 + np.cumsum(starts, axis=1)
    segments[::2, rng.integers(L - 6, L) :] = 0
    return {"tokens": rng.integers(0, MODEL.vocab, (BATCH, L)).astype(np.int32), "segments": segments.astype(np.int32)}


def mesh_of(name):
    """Over as many of the simulated devices as it needs, from all processes; one device is each process's own."""
    count = int(np.prod(dataclasses.astuple(MESHES[name])))
    devices = jax.local_devices()[:1] if count == 1 else jax.devices()[:: jax.device_count() // count]
    mesh = meshes.make_mesh(MESHES[name], devices)
    meshes.check_mesh(mesh, model_of(name), BATCH // experiment(name).train.accumulate, L)
    return mesh


def run(name, step, params):
    """Everything worth comparing after two steps on one mesh."""
    config, mesh = experiment(name), mesh_of(name)
    found = {"temporaries": np.array(step.memory_analysis().temp_size_in_bytes)}
    found["collectives"] = np.array(json.dumps(collectives(step.as_text())))
    state = states.init_state(config, jax.tree.map(jax.numpy.copy, params), model_of(name), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = jax.device_put(windows(), meshes.batch_sharding(mesh))
    state, first = step(state, batch)
    ((_, moments),) = optax.tree.get_all_with_path(state.optimizer, "mu")
    gather = jax.jit(lambda tree: tree, out_shardings=meshes.replicated(mesh))  # what other processes hold too
    for path, moment in nnx.to_flat_state(gather(moments)):
        found[f"gradient/{'/'.join(path)}"] = np.asarray(moment[...]) / (1 - config.optimizer.b1)
    state, second = step(state, batch)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout, "the layout is kept"
    for path, leaf in nnx.to_flat_state(state.params):
        check_layout(path, leaf, config.mesh)
    for path, leaf in nnx.to_flat_state(gather(state.params)):
        found[f"parameter/{'/'.join(path)}"] = np.asarray(leaf[...])
    for number, metrics in enumerate((first, second)):
        for path, value in jax.tree.leaves_with_path(metrics):
            found[f"{jax.tree_util.keystr(path, simple=True)}{number}"] = np.asarray(value)
    if name in THOROUGH:
        put = functools.partial(jax.device_put, device=meshes.batch_sharding(mesh))
        held_out = HeldOut(windows(), BATCH, put)
        found |= {
            "held_out": np.array(held_out.nll(Network(MODEL, state.params, compute_of(config)), (HELD_OUT,))[HELD_OUT].nll)
        }
        one_stream = jax.jit(AnyOrder(MODEL, ONE_STREAM, compute_of(config), 64).sums)
        keys = example_keys(0, 0, BATCH)
        loss, _, counts, _ = one_stream(state.params, batch, keys)
        found |= {"one_stream": np.asarray(loss / counts.predicted)}
        loss, gradients = distilled(name, params, batch)
        found |= {"distilled": np.asarray(loss)}
        for path, leaf in nnx.to_flat_state(gather(gradients)):
            found[f"gradient/distilled/{'/'.join(path)}"] = np.asarray(leaf[...])
    return {f"{name}:{key}": value for key, value in found.items()}


def distilled(name, source, batch):
    """The loss of a model with adapters, half of it measured against another model, and its gradients."""
    rng = np.random.default_rng(1)
    adapted = states.state_shardings(experiment(name), ADAPTED, mesh_of(name)).params
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes(ADAPTED))
    params = jax.device_put(drawn, adapted)
    objective = AnyOrder(ADAPTED, STAGE, compute_of(experiment(name)), 64, 0.5)
    keys = example_keys(0, 0, BATCH)

    def loss(params, source, batch):
        total, _, counts, _ = objective.sums(params, batch, keys, source)
        return total / counts.predicted

    return jax.jit(jax.value_and_grad(loss), out_shardings=(None, adapted))(params, source, batch)


def check_layout(path, leaf, mesh):
    """Every device holds just the part that the parameter's letters say."""
    parts = {"D": mesh.fsdp * mesh.context, "X": mesh.expert} | dict.fromkeys("FHKV", mesh.tensor)
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


def main(out, asked, *place):
    """Programs are compiled side by side and run one after the other."""
    jax.config.update("jax_disable_most_optimizations", True)
    if place:
        jax.distributed.initialize(place[0], 2, int(place[1]))
    results, names = {}, asked.split(",")
    with ThreadPoolExecutor(2) as compilers:
        compiled = {
            name: compilers.submit(lower(experiment(name), model_of(name), STAGE, mesh_of(name)).compile) for name in names
        }
        begun = dict.fromkeys([one_device(name) for name in names] + [name for name in THOROUGH if name in names])
        drawn = {name: states.random_params(experiment(name), model_of(name), mesh_of(name)) for name in begun}
        for name in names:
            layout = states.state_shardings(experiment(name), model_of(name), mesh_of(name)).params
            params = drawn.get(name) or jax.device_put(jax.device_get(drawn[one_device(name)]), layout)
            with jax.set_mesh(mesh_of(name)):
                results |= run(name, compiled[name].result(), params)
    if jax.process_index() == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
