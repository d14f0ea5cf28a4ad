"""Checksums of all that a checkpoint holds, computed when it is saved and when a run goes on from it."""

import json
import zlib
from typing import Any

from a3jax.checkpoint.checksums import array_sums
from a3jax.train.state import State


def checksums(state: State, **facts: Any) -> dict[str, int]:
    """One number for every array of the parameters and the optimizer, and for each of `facts` (JSON values).

    Parameters come first, as `a3jax.checkpoint.folder.load_params` knows them.
    """
    arrays = array_sums((state.params, state.optimizer))
    return arrays | {name: zlib.crc32(json.dumps(fact, sort_keys=True).encode()) for name, fact in facts.items()}
