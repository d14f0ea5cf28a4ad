"""Memory of reading and of preparing stays flat: a corpus several times larger than what is held at a time."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_an_epoch_of_a_corpus_is_read_in_less_than_half_of_its_bytes(tmp_path):
    words = random.Random(0)
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"word{words.randrange(10_000)}" for _ in range(100_000)))
    made = prepare([tmp_path], tmp_path / "corpus", Preparation("bytes", held_out=0.01, workers=1))
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent / "weights"), *sys.path])
    command = [sys.executable, here / "memory_process.py", tmp_path / "corpus"]
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["tokens"] > 0.9 * made.train.tokens
    assert found["grown"] < made.train.tokens  # which take two bytes each


_PEAK = r"""
import pathlib, re, sys
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.sources import interface
interface.PART_BYTES = 2**18  # what is held at a time is a part, and so it can be small here
prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), Preparation("bytes", column="ids", workers=1, deduplicate=True))
print(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_memory_does_not_grow_with_the_corpus(kind, tmp_path):
    peaks = []
    for chunks in (5, 30):  # of 300,000 token ids each, which take no time to tokenize
        file = tmp_path / f"{chunks}.{kind}"
        draw = np.random.default_rng(0)
        with (
            pq.ParquetWriter(file, pa.schema({"ids": pa.list_(pa.uint16())})) if kind == "parquet" else file.open("w") as out
        ):
            for _ in range(chunks):
                rows = draw.integers(0, 256, (300, 1000), np.uint16)
                if kind == "parquet":
                    out.write_table(pa.table({"ids": pa.array(list(rows), pa.list_(pa.uint16()))}))
                else:
                    out.writelines(json.dumps({"ids": row.tolist()}) + "\n" for row in rows)
        command = [sys.executable, "-c", _PEAK, str(file), str(tmp_path / f"out{chunks}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 8_000, f"KiB: {peaks}, while 15 MB of token ids more were read"
