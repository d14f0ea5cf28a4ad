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

    key: Array  # N x B x K x L x E, as attention's products take them
    value: Array  # N x B x K x L x E
    position: Array  # B x L

    @property
    def slots(self) -> int:
        """For how many tokens of each sequence there is room."""
        return self.position.shape[1]

    def placed(self, offset_B: Array, position_BxC: Array) -> "Cache":
        """The cache with the positions of new content rows from slot `offset` on."""
        return self._replace(position=self.position.at[_new(offset_B, position_BxC)].set(position_BxC, mode="drop"))

    def layer(self, number: Array) -> Keys:
        """What rows of one layer may see."""
        return Keys(self.key[number].swapaxes(1, 2), self.value[number].swapaxes(1, 2), self.position)

    def write(self, layer: Array, offset_B: Array, key_BxCxKxE: Array, value_BxCxKxE: Array) -> "Cache":
        """The cache with new content rows of one layer from slot `offset` on; those beyond its end are dropped."""
        batch_Bx1, slot_BxC = _new(offset_B, key_BxCxKxE)
        here = layer, batch_Bx1, slice(None), slot_BxC
        key, value = (x.at[here].set(new, mode="drop") for x, new in zip(self, (key_BxCxKxE, value_BxCxKxE)))
        return self._replace(key=key, value=value)

    def copies(self, owner_R: Array | np.ndarray, slots: int) -> "Cache":
        """Caches of R sequences with room for `slots` tokens, whose beginnings are those of the sequences `owner`."""

        more = max(0, slots - self.slots)
        key, value = (
            jnp.pad(x[:, owner_R, :, :slots], [(0, more if axis == 3 else 0) for axis in range(5)]) for x in self[:2]
        )
        return Cache(key, value, jnp.pad(self.position[owner_R, :slots], [(0, 0), (0, more)]))


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype) -> Cache:
    """Room for `slots` committed tokens in each of `batch` sequences."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_width)
    keys, values = (constrain(jnp.zeros(shape, dtype), "NxBxKxLxE") for _ in range(2))
    return Cache(keys, values, jnp.zeros((batch, slots), jnp.int32))


def bytes_of_slot(config: ModelConfig, dtype: jnp.dtype) -> int:
    """What a token's keys and values take, of all layers."""
    return 2 * config.layers * config.kv_heads * config.head_width * jnp.dtype(dtype).itemsize


def _new(offset_B: Array, new_BxCx: Array) -> tuple[Array, Array]:
    """The indices, B x 1 and B x C, of new slots from slot `offset` on."""
    batch, rows = new_BxCx.shape[:2]
    return jnp.arange(batch)[:, None], offset_B[:, None] + jnp.arange(rows)
