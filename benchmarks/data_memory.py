"""How much memory reading takes, for a corpus and for one ten times its size: `python benchmarks/data_memory.py`.

Corpora of random documents are written into a temporary folder, about 0.7 GB of it. Each is read by a process of its own:
batches from all over it, until as many tokens are read as the smaller one holds. What is printed is the peak of resident
memory above what the process holds when all is imported.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from a3jax.config import DataConfig
from a3jax.data.corpus import VERSION, Manifest, ShardWriter, join_shards, write_manifest
from a3jax.data.pipeline import Batches, open_corpora, training_batches

TOKENS = 32 * 2**20
"""Of the smaller corpus: 64 MiB of uint16."""
SHARD_TOKENS = 8 * 2**20
DATA = DataConfig(length=2048, batch=32)


def main() -> None:
    """Measure both corpora with both packings, each in a process of its own."""
    table = Table("corpus, MiB of tokens", "packing", "peak memory above start, MiB")
    with tempfile.TemporaryDirectory(prefix="a3jax-memory-") as folder:
        for times in (1, 10):
            corpus = Path(folder) / str(times)
            write(corpus, times * TOKENS)
            for packing in ("concat", "best_fit"):
                command = [sys.executable, __file__, str(corpus), packing]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                table.add_row(f"{times * TOKENS * 2 / 2**20:.0f}", packing, f"{json.loads(done.stdout) / 2**20:.0f}")
    Console().print(table)


def write(folder: Path, tokens: int) -> None:
    """A corpus of random documents of 100 to 1900 tokens."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    numbers = range(tokens // SHARD_TOKENS)
    for number in numbers:
        with ShardWriter(folder, "train", number, "uint16") as shard:
            written = 0
            while written < SHARD_TOKENS:
                document = rng.integers(0, 50_000, rng.integers(100, 1900))
                shard.write(document)
                written += len(document)
    train, held_out = join_shards(folder, "train", numbers), join_shards(folder, "held_out", [])
    manifest = Manifest(VERSION, train, held_out, vocab=50_000, tokenizer_sha256="", dtype="uint16", seed=0,
                        held_out_fraction=0.0, start_token=None, end_token=None, sources=(), settings={}, characters=0,
                        passed_over={})  # fmt: skip
    write_manifest(folder, manifest)


def read(folder: str, packing: str) -> int:
    """Bytes of resident memory that reading needed at most."""
    before = resident("VmRSS")
    steps = TOKENS // (DATA.batch * DATA.length)
    data = DataConfig(folder, DATA.length, DATA.batch, packing=packing)  # type: ignore[arg-type]
    for _ in training_batches(Batches(open_corpora(data), data, steps, seed=0)):
        pass
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(read(*sys.argv[1:]))
    else:
        main()
