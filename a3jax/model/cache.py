"""Keys and values of slots, and where these stand: what a layer's rows may see, and all that is kept while decoding."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.config import ModelConfig
from a3jax.devices.mesh import constrain


class Keys(NamedTuple):
    """What rows of a layer may see: keys and values of slots, and where these stand."""

    key: Array  # B x L x K x E
    value: Array
    position: Array  # B x L


class Cache(NamedTuple):
    """Keys and values of slots in every layer. Content never changes once committed, so they are never computed again."""

    key: Array  # N x B x L x K x E
    value: Array  # N x B x L x K x E
    position: Array  # B x L

    def placed(self, offset_B: Array, position_BxC: Array) -> "Cache":
        """The cache with the positions of new content rows from slot `offset` on."""
        return self._replace(position=_put(self.position, offset_B, position_BxC))

    def layer(self, number: Array) -> Keys:
        """What rows of one layer may see."""
        return Keys(self.key[number], self.value[number], self.position)

    def write(self, layer: Array, offset_B: Array, key_BxCxKxE: Array, value_BxCxKxE: Array) -> "Cache":
        """The cache with new content rows of one layer from slot `offset` on; those beyond its end are dropped."""
        key, value = (_put(x, offset_B, new, layer) for x, new in zip(self, (key_BxCxKxE, value_BxCxKxE)))
        return self._replace(key=key, value=value)

    def copies(self, owner_R: Array | np.ndarray, slots: int) -> "Cache":
        """Caches of R sequences with room for `slots` tokens, whose beginnings are those of the sequences `owner`."""

        def copy(x_NxBxLx: Array) -> Array:
            x_NxRxLx = x_NxBxLx[:, owner_R, :slots]
            return jnp.pad(
                x_NxRxLx, [(0, max(0, slots - x_NxRxLx.shape[2]) if axis == 2 else 0) for axis in range(x_NxRxLx.ndim)]
            )

        return Cache(copy(self.key), copy(self.value), copy(self.position[None])[0])


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype) -> Cache:
    """Room for `slots` committed tokens in each of `batch` sequences."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_width)
    keys, values = (constrain(jnp.zeros(shape, dtype), "NxBxLxKxE") for _ in range(2))
    return Cache(keys, values, jnp.zeros((batch, slots), jnp.int32))


def bytes_of_slot(config: ModelConfig, dtype: jnp.dtype) -> int:
    """What a token's keys and values take, of all layers."""
    return 2 * config.layers * config.kv_heads * config.head_width * jnp.dtype(dtype).itemsize


def _put(x: Array, offset_B: Array, new_BxCx: Array, *before: Array) -> Array:
    """An array of slots with new ones from slot `offset` on, behind indices of its axes before; what is beyond is dropped."""
    batch, rows = new_BxCx.shape[:2]
    return x.at[(*before, jnp.arange(batch)[:, None], offset_B[:, None] + jnp.arange(rows))].set(new_BxCx, mode="drop")
