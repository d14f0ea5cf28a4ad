"""What replicas hold alike is read once: by the processes of the first of them, for all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx
from model_folders import save_model
from replica_process import MODEL

from a3jax.checkpoint.folder import find
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.export.exporter import export_model

PROCESS = Path(__file__).with_name("replica_process.py")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("axis", ["data", "slices"])
def test_of_two_processes_that_hold_the_same_one_reads_and_both_have_it_bit_for_bit(axis, network, tmp_path):
    model = tmp_path / "model"
    save_model(model, MODEL, nnx.to_pure_dict(nnx.state(network(MODEL), nnx.Param)), Provenance("random"), byte_codec().files)
    export_model(find(model), tmp_path / "published", "llama")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    # What one of them has compiled before would be there for it alone, and the other comes too late.
    alike = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | alike
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [[sys.executable, PROCESS, tmp_path, axis, address, str(i)] for i in range(2)]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first["wrong"] == second["wrong"] == []
    assert second["read"]["published"] == 0
    for what in ("restored", "loaded"):  # besides, each reads what the checkpoint says of itself
        assert second["read"][what] < first["read"][what] / 5, (first, second)
