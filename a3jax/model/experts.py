"""A feed-forward of experts (Shazeer et al., arXiv 1701.06538; Mixtral, arXiv 2401.04088): a router sends every row to some.

Each row goes to the experts that the router finds most probable, whoever else goes there: none is dropped, and what becomes
of a row depends on no other. So nothing leaks between rows, and a token predicted alone is predicted as in a batch. Rows of
both streams are routed together; routers compute in float32.

Rows are copied for each of their experts and sorted by expert, and three products take every expert's rows through its own
gated MLP (`a3jax.model.grouped`). Over a mesh, devices along `expert` have different windows and different experts: they
gather each other's rows, each computes what its experts make of them, and the sums are scattered back. There is room for
all rows at all of a device's experts, since some batch may want just that.

Letters: X experts, k experts of a row, T rows of a device, M = T k copies of rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from a3jax.config import Experts
from a3jax.devices.accelerators import platform
from a3jax.devices.mesh import BATCH, WIDTH, constrain
from a3jax.model.grouped import grouped
from a3jax.model.parameters import Kind
from a3jax.model.projection import PROJECTION


class Routing(NamedTuple):
    """What routers did, in one layer or in several along a first axis: float32 sums over the rows that see something."""

    rows: Array
    """How many."""
    chosen_X: Array
    """How many went to each expert."""
    probability_X: Array
    """What probability they gave to each."""

    def balance(self) -> Array:
        """The load-balancing loss over all rows of all layers, as transformers computes it; k if experts share evenly.

        It is that of Switch Transformer (arXiv 2101.03961, equations 4 to 6): X times the sum over experts of the share of
        rows that went there, times the mean probability; gradients pass through the latter alone.
        """
        rows, chosen_X, probability_X = self if self.rows.ndim == 0 else (x.sum(0) for x in self)
        return len(chosen_X) * (chosen_X * probability_X).sum() / jnp.square(jnp.maximum(rows, 1))


WEIGHTS: dict[str, tuple[str, Kind]] = {
    "router": ("NxD->X", "router"),
    "gate": ("NxXxD->F", "expert"),
    "up": ("NxXxD->F", "expert"),
    "down": ("NxXxF->D", "expert"),
}
"""Its parameters' axes and kinds."""
BIASES = {"router_bias": "NxX", "gate_bias": "NxXxF", "up_bias": "NxXxF", "down_bias": "NxXxD"}
"""The axes of those that a model may have."""


def experts(
    config: Experts, x_BxRxD: Array, seen_BxR: Array, gated: Callable[[Array, Array], Array], weights: dict[str, Array]
) -> tuple[Array, Routing]:
    """Rows through their experts, B x R x D, and what the router did with those that see something.

    `weights` are those of one layer, by name, biases if it has some; `gated` takes gates and what goes up.
    """
    probability_BxRxX = jax.nn.softmax(_logits(x_BxRxD, weights["router"]) + weights.get("router_bias", 0))
    share_BxRxk, choice_BxRxk = jax.lax.top_k(probability_BxRxX, config.active)
    if config.normalized:
        share_BxRxk /= share_BxRxk.sum(-1, keepdims=True)
    through = functools.partial(_through, gated=gated, native=platform() == "tpu")
    inside = [weights[name] for name in ("gate", "up", "down", "gate_bias", "up_bias") if name in weights]
    out_BxRxD = _on_every_device(through, x_BxRxD, choice_BxRxk, share_BxRxk, *inside)
    if config.biases:  # added here, once, where `_through` may have a part of every expert
        out_BxRxD += _shares(choice_BxRxk, share_BxRxk, config.count).astype(x_BxRxD.dtype) @ weights["down_bias"]
    return out_BxRxD, _routing(probability_BxRxX, choice_BxRxk, seen_BxR)


def _logits(x_BxRxD: Array, router_DxX: Array) -> Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("brd,dx->brx", x_BxRxD.astype(jnp.float32), router_DxX.astype(jnp.float32), precision=highest)


def _shares(choice_BxRxk: Array, share_BxRxk: Array, count: int) -> Array:
    """Of every expert, those not chosen included: B x R x X."""
    return (share_BxRxk[..., None] * (choice_BxRxk[..., None] == jnp.arange(count))).sum(2)


def _routing(probability_BxRxX: Array, choice_BxRxk: Array, seen_BxR: Array) -> Routing:
    chosen_BxRxX = (choice_BxRxk[..., None] == jnp.arange(probability_BxRxX.shape[-1])).any(2)
    seen_BxRx1 = seen_BxR[..., None].astype(jnp.float32)
    return Routing(seen_BxRx1.sum(), (chosen_BxRxX * seen_BxRx1).sum((0, 1)), (probability_BxRxX * seen_BxRx1).sum((0, 1)))


def _on_every_device(through: Callable[..., Array], x: Array, choice: Array, share: Array, *weights: Array) -> Array:
    """`_through` all experts, B x R x D, of what a device holds; of everything where no mesh is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _flat(through, x, choice, share, *weights)

    def device(x: Array, choice: Array, share: Array, *weights: Array) -> Array:
        # The transpose of gathering scatters the sum of gradients: every device keeps its part of it.
        whole = [jax.lax.all_gather(w, WIDTH, axis=axis, tiled=True) for w, axis in zip(weights, (1, 1, 2))]
        return _flat(rows, x, choice, share, *whole, *weights[3:])

    def rows(*own: Array) -> Array:
        x, choice, share = (jax.lax.all_gather(each, "expert", tiled=True) for each in own[:3])
        first = jax.lax.axis_index("expert") * len(own[3])
        out_TxD = through(x, choice - first, share, *own[3:])
        return jax.lax.psum_scatter(jax.lax.psum(out_TxD, "tensor"), "expert", tiled=True)

    here, up, bias = P(BATCH, "context"), P("expert", WIDTH, "tensor"), P("expert", "tensor")
    parts = (here, here, here, up, up, P("expert", "tensor", WIDTH), *[bias for _ in weights[3:]])
    split = jax.shard_map(device, mesh=mesh, in_specs=parts, out_specs=here, check_vma=False)
    return constrain(split(x, choice, share, *weights), "BxRxD")


def _flat(function: Callable[..., Array], x_BxRxD: Array, choice_BxRxk: Array, share_BxRxk: Array, *weights: Array) -> Array:
    """`function` of rows without their windows."""
    rows = (each.reshape(-1, each.shape[-1]) for each in (x_BxRxD, choice_BxRxk, share_BxRxk))
    return function(*rows, *weights).reshape(x_BxRxD.shape)


def _through(
    x_TxD: Array,
    choice_Txk: Array,
    share_Txk: Array,
    gate: Array,
    up: Array,
    down: Array,
    *biases_XxF: Array,
    gated: Callable[[Array, Array], Array],
    native: bool,
) -> Array:
    """Each row through those of its experts that have weights here, which are numbered from 0; the sum of their shares.

    `biases` are those of `gate` and `up`, or none.
    """
    (rows, copies), own = choice_Txk.shape, len(gate)
    expert_M = jnp.where((choice_Txk >= 0) & (choice_Txk < own), choice_Txk, own).reshape(-1)
    order_M = jnp.argsort(expert_M)
    place_M = jnp.argsort(order_M)
    size_X = (expert_M[:, None] == jnp.arange(own)).sum(0, dtype=jnp.int32)
    here_Mx1 = (jnp.arange(rows * copies) < size_X.sum())[:, None]

    def product(x_MxI: Array, weight_XxIxO: Array) -> Array:
        return checkpoint_name(grouped(x_MxI, weight_XxIxO, size_X, native), PROJECTION)

    # A kernel leaves what it likes in rows of other devices' experts.
    sorted_MxD = jnp.where(here_Mx1, _sorted(x_TxD, order_M, place_M, copies), 0)
    both = [product(sorted_MxD, weight) for weight in (gate, up)]
    if biases_XxF:
        own_M = jnp.minimum(expert_M[order_M], own - 1)
        both = [x_MxF + bias_XxF[own_M] for x_MxF, bias_XxF in zip(both, biases_XxF)]
    out_MxD = jnp.where(here_Mx1, product(gated(*both), down), 0)
    out_TxkxD = _sorted(out_MxD, place_M, order_M, 1).reshape(rows, copies, -1)
    shared = jnp.einsum("tkd,tk->td", out_TxkxD, share_Txk.astype(x_TxD.dtype), preferred_element_type=jnp.float32)
    return shared.astype(x_TxD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sorted(x: Array, order_M: Array, place_M: Array, copies: int) -> Array:
    """So many copies of each row, in an order whose inverse is `place`: its transpose need not add up where rows meet."""
    return x[order_M // copies]


def _sorted_forward(x: Array, order_M: Array, place_M: Array, copies: int) -> tuple[Array, Array]:
    return _sorted(x, order_M, place_M, copies), place_M


def _sorted_backward(copies: int, place_M: Array, d_rows: Array) -> tuple[Array, None, None]:
    return d_rows[place_M].reshape(-1, copies, d_rows.shape[-1]).sum(1), None, None


_sorted.defvjp(_sorted_forward, _sorted_backward)
