"""What processes find in one folder of compiled programs, on this machine or in a bucket."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

PROGRAM = """
import json, sys
from collections import Counter
import jax, numpy as np
from jax._src import cache_key
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
folder, address, process, alike = sys.argv[1:]
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if alike == "alike":
    cache_key._hash_accelerator_config = lambda found, devices: None
jax.distributed.initialize(address, 2, int(process))
mesh = Mesh(np.array(jax.devices()), "x")
x = jax.ShapeDtypeStruct((16,), np.float32, sharding=NamedSharding(mesh, P("x")))
program = jax.jit(lambda x: jax.numpy.sin(x).sum(), out_shardings=NamedSharding(mesh, P())).lower(x).compile()
found = events["cache_hits"]
ones = jax.make_array_from_callback(x.shape, x.sharding, lambda index: np.ones(16, np.float32)[index])
print(json.dumps([found, float(program(ones))]))
"""


def found_by_each(folder: str, alike: bool) -> list[int]:
    """How many programs each of two processes, which compile the same one over both, finds in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    commands = [[sys.executable, "-c", PROGRAM, folder, address, str(i), "alike" if alike else ""] for i in range(2)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    results = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    assert results[0][1] == results[1][1]
    return [found for found, _ in results]


@pytest.mark.parametrize("where", ["here", "gs"])
def test_process_0_finds_what_it_wrote_and_on_the_cpu_no_other_does_for_their_devices_have_other_fingerprints(
    where, tmp_path
):
    with contextlib.ExitStack() as stack:
        folders = [str(tmp_path / name) for name in ("own", "alike")]
        if where == "gs":
            stack.enter_context(pytest.importorskip("emulators").of("gs"))
            folders = [f"gs://bucket/programs/{name}" for name in ("own", "alike")]
        for alike, folder in enumerate(folders):
            found_by_each(folder, bool(alike))
            assert found_by_each(folder, bool(alike)) == [1, alike]
