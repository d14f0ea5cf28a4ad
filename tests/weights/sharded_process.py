"""What test_sharded.py runs in processes of their own, over simulated devices.

    python sharded_process.py OUT.json compare SOURCE IMPORTED DTYPE ...          8 devices, several models
    python sharded_process.py OUT.json rounded FOLDER                             the same, one model in int8
    python sharded_process.py OUT.json share PROCESS PORT SOURCE IMPORTED         one of two processes, 4 devices each
    python sharded_process.py OUT.json memory PROCESS PORT SOURCE IMPORTED SMALL  the same; SMALL loads what is loaded once

XLA_FLAGS=--xla_force_host_platform_device_count=8 or 4 makes the devices.
"""

import collections
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from memory import grown_by

import a3jax
from a3jax.checkpoint.arrays import flat
from a3jax.checkpoint.folder import find, load_params, saved
from a3jax.config import MeshConfig
from a3jax.devices.mesh import make_mesh
from a3jax.weights.huggingface import HuggingFaceFolder
from a3jax.weights.sharded import load_source
from a3jax.weights.source import open_source

MESHES = {"fsdp": (1, 8, 1), "tensor x fsdp": (1, 4, 2), "data x fsdp": (2, 4, 1)}


def arrays(params: nnx.State) -> dict[str, jax.Array]:
    """By dotted path."""
    return flat(nnx.to_pure_dict(params))


def compare(*args: str) -> dict:
    """The parameters that differ from those of an import, by model and mesh; and those that an update gets wrong."""
    differ: dict[str, list[str]] = {}
    update = jax.jit(lambda x: x * 2, donate_argnums=0)
    for source, imported, dtype in zip(args[::3], args[1::3], args[2::3]):
        expected = arrays(load_params(find(Path(imported)), dtype=dtype))
        for name, sizes in MESHES.items():
            found = arrays(load_source(open_source(source), make_mesh(MeshConfig(*sizes)), dtype))
            assert found.keys() == expected.keys()
            assert all(found[key].dtype == expected[key].dtype for key in expected)
            assert all(len(found[key].addressable_shards) == 8 for key in expected)
            wrong = [key for key in expected if not _parts_equal(found[key], np.asarray(expected[key]))]
            # Devices that hold the same part share one buffer: an update that is given it must not write there.
            if name == "data x fsdp" and not _parts_equal(update(found["embedding"]), np.asarray(expected["embedding"]) * 2):
                wrong.append("embedding, updated")
            differ[f"{Path(source).name} {dtype} {name}"] = wrong
    return differ


def rounded(folder: str) -> dict:
    """What a model in int8 says on one device and over every mesh: log-likelihoods of a text, and what it fills in."""

    def said(model: a3jax.Model) -> dict:
        scores = a3jax.log_likelihood(model, "Once upon a time", "random_4", seed=1)
        filled = a3jax.infill(model, "Once [[5]] a [[3]].", order="random_2", seed=1)
        return {"log_probs": list(scores.log_probs), "text": filled.text}

    found = {"alone": said(a3jax.load(folder, "int8"))}
    for name, sizes in MESHES.items():
        mesh = make_mesh(MeshConfig(*sizes))
        with jax.set_mesh(mesh):
            found[name] = said(a3jax.load(folder, "int8", mesh=mesh))
    return found


def share(process: str, port: str, source: str, imported: str) -> dict:
    """Bytes that this process copies from a source, by tensor; and the parameters of which it gets a part wrong."""
    mesh, once = _meet(process, port), HuggingFaceFolder.read_part
    read: collections.Counter[str] = collections.Counter()

    def counted(self, name, index):
        part = once(self, name, index)
        read[name] += part.nbytes
        return part

    HuggingFaceFolder.read_part = counted
    found = arrays(load_source(open_source(source), mesh))
    expected = {name: one.read() for name, one in saved(find(Path(imported))).items()}
    assert found.keys() == expected.keys()
    assert all(len(array.addressable_shards) == 4 for array in found.values())
    return {"wrong": [key for key in found if not _parts_equal(found[key], expected[key])], "read": read}


def memory(process: str, port: str, source: str, imported: str, small: str) -> dict:
    """By how much memory of this process's own grows while it loads; what is mapped from files can be dropped any time.

    `grown` is the largest growth, `kept` what the parameters take; `read` is what it reads of a model folder instead.
    """
    mesh = _meet(process, port)
    load_source(open_source(small), mesh)
    found, grown = grown_by(lambda: arrays(load_source(open_source(source), mesh)))
    kept = sum(shard.data.nbytes for array in found.values() for shard in array.addressable_shards)
    before_folder = _characters_read()
    load_params(find(Path(imported)), mesh)
    return {"grown": grown, "kept": kept, "read": _characters_read() - before_folder}


def _meet(process: str, port: str) -> jax.sharding.Mesh:
    """A mesh over the devices of both processes."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    return make_mesh(MeshConfig(1, 8, 1))


def _parts_equal(array: jax.Array, whole: np.ndarray) -> bool:
    """Whether the parts here are those of an array."""
    return all(np.array_equal(shard.data, whole[shard.index]) for shard in array.addressable_shards)


def _characters_read() -> int:
    """By system calls of this process, from anything."""
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    out, what, *args = sys.argv[1:]
    Path(out).write_text(json.dumps({"compare": compare, "rounded": rounded, "share": share, "memory": memory}[what](*args)))
