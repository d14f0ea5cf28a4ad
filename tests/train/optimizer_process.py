"""Three steps of every optimizer over 4 simulated devices; run by test_scaling.py in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python optimizer_process.py FOLDER

Prints one JSON object: of each optimizer the largest relative difference of an array of its parameters from those of one
device; whether the last step is the same to the bit from a checkpoint behind the second; and the bytes of its state, as
planned for a device, as one holds them, and of all of it.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum.plateau import PlateauState
from a3jax.devices import mesh as meshes
from a3jax.plan.compile import _bytes_per_device
from a3jax.train.checkpoints import Checkpoints
from a3jax.train.compiled import compile_step
from a3jax.train.state import abstract_state, init_state, random_params

MODEL = ModelConfig("llama", 128, 128, 256, 2, 4, 2, 32, 64, tied_head=True)
OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "adafactor": OptimizerConfig(name="adafactor"),
    "muon": OptimizerConfig(name="muon"),
    "lion": OptimizerConfig(name="lion"),
    "adamw in bfloat16": OptimizerConfig(moments="bfloat16"),
}


def main(folder: Path) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    draw = np.random.default_rng(0)
    batch = {
        "tokens": draw.integers(0, MODEL.vocab, (4, 32)).astype(np.int32),
        "segments": np.ones((4, 32), np.int32),
    }
    found = {}
    for name, optimizer in OPTIMIZERS.items():
        config = Config(
            name=name,
            run=str(folder / name),
            model=MODEL,
            data=DataConfig(length=32, batch=4),
            curriculum=(Stage(3, "random", 4),),
            optimizer=optimizer,
            train=TrainConfig(compute_dtype="float32", remat="none"),
        )
        over = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2))
        alone = meshes.make_mesh(MeshConfig(), jax.devices()[:1])
        start = jax.device_get(random_params(config, MODEL, alone))
        after = {}
        for mesh in (alone, over):
            with jax.set_mesh(mesh):
                abstract = abstract_state(config, MODEL, mesh)
                params = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, abstract.params))
                state = init_state(config, params, MODEL, mesh)
                step = compile_step(config, MODEL, config.curriculum[0], mesh)
                placed = jax.device_put(batch, meshes.batch_sharding(mesh))
                for _ in range(2):
                    state, _ = step(state, placed)
                if mesh is over:
                    with Checkpoints(config.run_folder, config.train) as checkpoints:
                        checkpoints.save(2, state, Provenance("random"), {}, PlateauState(), None)
                        checkpoints.wait()
                        again = checkpoints.restore(abstract, dict).state
                    planned = _bytes_per_device(abstract.optimizer)
                    leaves = jax.tree.leaves(state.optimizer)
                    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
                    whole = sum(leaf.nbytes for leaf in leaves)
                    again, _ = step(again, placed)
                state, _ = step(state, placed)
            after[mesh] = jax.tree.leaves(jax.device_get(state.params))
        both = zip(after[over], after[alone], strict=True)
        found[name] = {
            "difference": max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in both),
            "resumed": all(
                (np.asarray(x) == y).all() for x, y in zip(jax.tree.leaves(again.params), after[over], strict=True)
            ),
            "planned": planned,
            "held": held,
            "whole": whole,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
