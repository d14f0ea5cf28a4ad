"""Memory of reading stays flat: a corpus several times larger than what its reader takes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

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
