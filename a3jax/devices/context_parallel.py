"""Context parallelism: which slots of a window lie on which device along the mesh axis `context`.

A row sees keys before it, so of C plain pieces of a window the last would cost nearly twice the average. Device c holds
blocks c and 2C-1-c of 2C instead, which together cost the same for every c. Rows carry their own positions and ranges, so
they may lie in any order: the integers that describe them are spread once, before the first layer, and everything that
follows is where it belongs. Keys alone must be in slot order; `gathered` brings them there as it collects them, in every
layer, and its transpose sums their gradients and scatters them back.

A device's rows of an array of both streams are its content rows, then its query rows; `streams`, `first` and `rest` put
them together and take them apart without moving any.

Everything here changes nothing where the mesh in use has no `context`, or there is none.
"""

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.devices.mesh import BATCH, constrain, lay
from a3jax.errors import UserError


def refuse(what: str) -> None:
    """Raises `UserError` if the mesh in use splits windows, which `what` cannot."""
    if (count := devices()) > 1:
        raise UserError(f"{what} keeps keys in one piece, and mesh.context is {count}; set it to 1")


def devices() -> int:
    """Devices along `context` of the mesh in use."""
    return jax.sharding.get_abstract_mesh().shape.get("context", 1)


def spread(x_BxL: Array) -> Array:
    """Slot order -> the order in which devices hold slots. For integers and weights, which every device knows whole."""
    if (count := devices()) == 1:
        return x_BxL
    x_Bx2Cxl = lay(x_BxL, BATCH).reshape(x_BxL.shape[0], 2 * count, -1)
    pairs_BxCx2xl = jnp.stack([x_Bx2Cxl[:, :count], x_Bx2Cxl[:, : count - 1 : -1]], axis=2)
    return constrain(pairs_BxCx2xl.reshape(x_BxL.shape), "BxL")


def place(slot_BxL: Array, length: int) -> Array:
    """Where a slot of a window of so many lies once its slots are `spread`."""
    if (count := devices()) == 1:
        return slot_BxL
    size = length // (2 * count)
    block, within = jnp.divmod(slot_BxL, size)
    return jnp.where(block < count, 2 * block, 4 * count - 1 - 2 * block) * size + within


def gathered(x_BxlxKxE: Array) -> Array:
    """Inside a `shard_map`: this device's slots -> all slots of its windows, in slot order."""
    if (count := devices()) == 1:
        return x_BxlxKxE
    B, slots, K, E = x_BxlxKxE.shape
    pairs_BxCx2xlxKxE = jax.lax.all_gather(x_BxlxKxE, "context", axis=1).reshape(B, count, 2, slots // 2, K, E)
    low, high = pairs_BxCx2xlxKxE[:, :, 0], pairs_BxCx2xlxKxE[:, ::-1, 1]
    return jnp.concatenate([low, high], axis=1).reshape(B, count * slots, K, E)


def streams(content_BxLx: Array, query_BxLx: Array) -> Array:
    """Rows of both streams, B x 2L x ...: on every device its content rows before its query rows."""
    return _join(jnp.concatenate([_cut(content_BxLx), _cut(query_BxLx)], axis=2))


def first(x_BxRx: Array, count: int) -> Array:
    """The first `count` rows, an equal share on every device."""
    return _join(_cut(x_BxRx)[:, :, : count // devices()])


def rest(x_BxRx: Array, skip: int) -> Array:
    """All rows but the `first` ones."""
    return _join(_cut(x_BxRx)[:, :, skip // devices() :])


def _cut(x_BxRx: Array) -> Array:
    """B x C x R / C x ..., by device."""
    B, R, *others = x_BxRx.shape
    return x_BxRx.reshape(B, devices(), R // devices(), *others)


def _join(x_BxCxrx: Array) -> Array:
    B, C, r, *others = x_BxCxrx.shape
    return x_BxCxrx.reshape(B, C * r, *others)
