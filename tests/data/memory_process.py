"""What test_memory.py runs in a process of its own: reads a corpus from its first window to its last.

    PYTHONPATH=tests/weights python memory_process.py CORPUS

Writes the tokens read, and by how many bytes memory of this process's own grew.
"""

import json
import sys

from memory import grown_by

from a3jax.config import DataConfig
from a3jax.data.pipeline import Batches, open_corpora, training_batches

BATCH, LENGTH = 16, 1024


def main(corpus: str) -> None:
    data = DataConfig(corpus, length=LENGTH, batch=BATCH)
    corpora = open_corpora(data)
    steps = corpora[0].manifest.train.tokens // (BATCH * LENGTH) - 1

    def read() -> int:
        batches = iter(training_batches(Batches(corpora, data, steps, seed=0), 0))
        return sum(int((next(batches)["segments"] > 0).sum()) for _ in range(steps))

    next(iter(training_batches(Batches(corpora, data, 1, seed=0), 0)))  # libraries and connections are there
    tokens, grown = grown_by(read)
    print(json.dumps({"tokens": tokens, "grown": grown}))


if __name__ == "__main__":
    main(*sys.argv[1:])
