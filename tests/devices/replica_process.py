"""One of two processes of two simulated devices each, over which a mesh has two replicas of a state.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python replica_process.py FOLDER AXIS HOST:PORT PROCESS

Saves a checkpoint, restores it, and loads its weights, and a published model's, as one that generates does. Writes into
FOLDER/PROCESS.json how many bytes each of these read here, and what did not come back bit for bit.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from a3jax.checkpoint.arrays import flat
from a3jax.checkpoint.folder import find, saved
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum.plateau import PlateauState
from a3jax.data.tokenizer import byte_codec
from a3jax.devices.mesh import make_mesh
from a3jax.files.strict import to_json
from a3jax.train import state as states
from a3jax.train.checkpoints import Checkpoints
from a3jax.weights.huggingface import HuggingFaceFolder
from a3jax.weights.pretrained import Pretrained, pretrained

MODEL = ModelConfig("llama", 320, 64, 256, 4, 4, 2, 16, 64)


def bytes_read(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` gives, and how many bytes this process reads for it; called once before, for what is imported for it."""
    work()
    before = _characters_read()
    return work(), _characters_read() - before


def _characters_read() -> int:
    """By system calls of this process, from anything."""
    return int(Path("/proc/self/io").read_text().split()[1])


def copied(work: Callable[[], Any]) -> tuple[Any, int]:
    """The same of a published model, whose files are mapped."""
    once, count = HuggingFaceFolder.read_part, 0

    def counted(self, name, index):
        nonlocal count
        part = once(self, name, index)
        count += part.nbytes
        return part

    HuggingFaceFolder.read_part = counted
    result = work()
    HuggingFaceFolder.read_part = once
    return result, count


def bits(tree: Any) -> list[bytes]:
    """Of every part of every array here."""
    leaves = sorted(jax.tree_util.tree_leaves_with_path(tree), key=lambda leaf: jax.tree_util.keystr(leaf[0]))
    return [np.asarray(shard.data).tobytes() for _, leaf in leaves for shard in leaf.addressable_shards]


def drawn(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random numbers, and some that adding up zeros, or rounding them away, would change."""
    values = rng.normal(size=shape).astype(np.float32)
    values[..., :4] = -0.0, np.nan, np.inf, -1e-42
    return values


def laid_out(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array over the devices of both processes."""
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def main(folder: Path, axis: str, address: str, process: str) -> None:
    jax.distributed.initialize(address, 2, int(process))
    config = Config(
        name="replicas",
        run=str(folder / "run"),
        model=MODEL,
        mesh=MeshConfig(**{"fsdp": 2, axis: 2}),
        data=DataConfig(length=32, batch=4),
        curriculum=(Stage(2, "random", 4),),
        optimizer=OptimizerConfig(moments="bfloat16"),
        train=TrainConfig(),
    )
    mesh = make_mesh(config.mesh)
    assert {device.process_index for device in mesh.devices[:1, :1].flat} == {0}
    with jax.set_mesh(mesh):
        abstract, rng = states.abstract_state(config, MODEL, mesh), np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: laid_out(drawn(leaf.shape, rng), leaf.sharding), abstract.params)
        state = states.init_state(config, params, MODEL, mesh)
        with Checkpoints(config.run_folder, config.train) as checkpoints:
            checkpoints.save(3, state, Provenance("random"), {"at": 3}, PlateauState(), None)
            checkpoints.wait()
            restored, read = bytes_read(lambda: checkpoints.restore(abstract, lambda: params))
        found = {"restored": read}
        wrong = [] if bits(restored.state[:2]) == bits(state[:2]) else ["restored"]
        wrong += [] if restored.data == {"at": 3} else ["data"]
        if process == "0":
            (config.run_folder / "model.json").write_text(to_json(MODEL))
            for name, content in byte_codec().files.items():
                (config.run_folder / name).write_bytes(content)
        multihost_utils.sync_global_devices("described")
        whole = {name: one.read() for name, one in saved(find(folder / "model")).items()}
        loaded, found["loaded"] = bytes_read(lambda: Pretrained(find(config.run_folder)).load(mesh))
        published, found["published"] = copied(lambda: pretrained(folder / "published").load(mesh))
        wrong += [] if bits(loaded) == bits(state.params) else ["loaded"]
        for path, array in flat(nnx.to_pure_dict(published)).items():
            # The query seed is the mean of the embedding, which numpy adds up in another order where it has less of it.
            if path != "query_seed" and any(
                not np.array_equal(shard.data, whole[path][shard.index]) for shard in array.addressable_shards
            ):
                wrong.append(f"published {path}")
    (folder / f"{process}.json").write_text(json.dumps({"read": found, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
