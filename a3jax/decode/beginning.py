"""What texts begin with, read once, so that each of them goes on from a copy of its keys and values.

Given tokens that are read from left to right see what stands before them and nothing else, so that their keys and values are
the same whatever follows, and wherever it stands.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode.cached import Beginning, Read, one_pass
from a3jax.model.cache import Cache, empty_cache
from a3jax.model.network import Network
from a3jax.ordering.sequence import bucket


def read_beginnings(
    network: Network,
    tokens: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]] | None = None,
) -> Beginning:
    """Read several beginnings, from left to right. Tokens stand at `places`, or one behind the other.

    What is read has a few sizes only, so that few programs are compiled.
    """
    length_B = np.array([len(one) for one in tokens], np.int32)
    count = bucket(int(length_B.max()), steps=4)
    places = [range(length) for length in length_B] if places is None else places
    token_BxC, place_BxC = (padded(count, *(np.array(one, np.int32) for one in each)) for each in (tokens, places))
    return Beginning(_read(network, token_BxC, place_BxC, length_B), length_B)


def padded(size: int, *rows: np.ndarray) -> np.ndarray:
    """Rows of different lengths as one array, padded with zeros."""
    return np.stack([np.pad(row, (0, size - len(row))) for row in rows])


@jax.jit
def _read(network: Network, token_BxC: Array, place_BxC: Array, length_B: Array) -> Cache:
    batch, count = token_BxC.shape
    slot_BxC = jnp.broadcast_to(jnp.arange(count), (batch, count))
    read = Read(token_BxC, place_BxC, jnp.where(slot_BxC < length_B[:, None], slot_BxC + 1, 0))
    config, compute = network.config, network.compute
    return one_pass(network.module(), read, None, empty_cache(config, batch, count, compute.dtype), 0, compute)[1]
