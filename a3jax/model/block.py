"""One layer of the transformer, and the rows that go through it: of content, of queries, or of both side by side.

A layer does two things: `Block.keys_values` makes keys and values of content rows, and `Block.attend_and_mlp` takes all
rows, or some of them, through the rest. Every product is one over all rows. A row carries its RoPE rotation and the range
of slots that it sees, so a layer knows nothing of orders, groups or documents.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.attention.blocks import Local, Range
from a3jax.config import ModelConfig
from a3jax.devices.context_parallel import first, rest, streams
from a3jax.devices.mesh import constrain
from a3jax.model import experts, mlp
from a3jax.model.adapters import adapted, factor_axes, factors, has_adapter
from a3jax.model.cache import Keys
from a3jax.model.experts import Routing
from a3jax.model.norm import norm_weight, normalize
from a3jax.model.parameters import declared, parameter
from a3jax.model.projection import project
from a3jax.model.rope import rotate


class Rows(NamedTuple):
    """R rows on their way through the layers: of content, of queries, or of both side by side.

    Every device has its content rows before its query rows (`a3jax.devices.context_parallel`), and rows know where they part.
    """

    x: Array  # B x R x D
    normed: Array  # B x R x D, what a layer's first products take: x, normalized where the layer normalizes first
    cos: Array  # B x R x J x e, of each row's rotation under every rotary embedding of the model; in a layer J is 1
    sin: Array
    start: Array  # B x R
    end: Array
    position: Array  # B x R, RoPE position
    content_rows: int
    changed: Array | None  # B x query rows
    own: Range | None = None  # B x R each, a second range of slots that is seen
    window: Array | None = None  # in a model with local attention, within how many tokens a layer's rows see

    @property
    def content(self) -> "Rows":
        """The content rows alone."""
        return self._part(first, self.content_rows, None)

    @property
    def queries(self) -> "Rows":
        """The query rows alone."""
        return self._part(rest, 0, self.changed)

    @property
    def wanted(self) -> "Rows":
        """The rows whose last hidden state is a pass's result: queries, or content where there are none."""
        return self if self.content_rows == self.x.shape[1] else self.queries

    @property
    def seen(self) -> Array:
        """Which rows see something, B x R: neither padding nor a query before which there is nothing."""
        seen = self.end > self.start
        return seen if self.own is None else seen | (self.own[1] > self.own[0])

    def _part(self, cut: Callable[[Array, int], Array], content_rows: int, changed: Array | None) -> "Rows":
        x, normed, cos, sin, start, end, position = (cut(array, self.content_rows) for array in self[:7])
        own = None if self.own is None else (cut(self.own[0], self.content_rows), cut(self.own[1], self.content_rows))
        return Rows(x, normed, cos, sin, start, end, position, content_rows, changed, own, self.window)


class Block(nnx.Module):
    """All N layers' parameters, stacked. Its methods are those of one layer, whose leading axis the scan has taken away."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare, norm = functools.partial(parameter, config, rngs=rngs), functools.partial(norm_weight, config, rngs=rngs)
        zeros, normal = nnx.initializers.zeros, nnx.initializers.normal(0.02)
        if config.pre_norm:
            self.attention_norm, self.mlp_norm = norm("NxD"), norm("NxD")
        if config.post_norm:
            self.attention_post_norm, self.mlp_post_norm = norm("NxD"), norm("NxD")
        self.query = declare("NxD->HxE", "matrix", normal)
        self.key = declare("NxD->KxE", "matrix", normal)
        self.value = declare("NxD->KxE", "matrix", normal)
        self.output = declare("NxHxE->D", "matrix", normal)
        feed_forward, biased = (mlp, config.mlp_bias) if config.experts is None else (experts, config.experts.biases)
        for name, (axes, kind) in feed_forward.WEIGHTS.items():
            setattr(self, name, declare(axes, kind, normal))
        if config.qkv_bias:
            self.query_bias = declare("NxHxE", "bias", zeros)
            self.key_bias = declare("NxKxE", "bias", zeros)
            self.value_bias = declare("NxKxE", "bias", zeros)
        if config.output_bias:
            self.output_bias = declare("NxD", "bias", zeros)
        for name, axes in feed_forward.BIASES.items() if biased else ():
            setattr(self, name, declare(axes, "bias", zeros))
        if config.attention_sinks:
            self.sinks = declare("NxH", "bias", zeros)
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.query_norm = norm("NxE" if per_head else "NxHxE")
            self.key_norm = norm("NxE" if per_head else "NxKxE")
        weights = {name: declared(value) for name, value in vars(self).items() if isinstance(value, nnx.Param)}
        for name in [name for name, weight in weights.items() if has_adapter(config, weight)]:
            for factor, axes, begin in zip(factors(name), factor_axes(weights[name]), (normal, zeros)):
                setattr(self, factor, declare(axes, "adapter", begin))

    def enter(self, rows: Rows, x_BxRxD: Array) -> Rows:
        """The rows as they come into this layer."""
        return rows._replace(x=x_BxRxD, normed=self._before(x_BxRxD, "attention_norm"))

    def keys_values(self, content: Rows) -> tuple[Array, Array]:
        """Keys and values of content rows, B x R x K x E each."""
        key, value = (self._project(content.normed, name, content) for name in ("key", "value"))
        return rotate(self._per_head(key, "key_norm"), content.cos, content.sin), self._clipped(value)

    def attend_and_mlp(self, rows: Rows, known: Keys, attend: Callable[..., Array]) -> tuple[Array, Routing | None]:
        """The rest of the layer: the rows' new embeddings, B x R x D, from the keys and values that they may see.

        With them comes what the router did, in a layer that has one.
        """
        query = rotate(self._per_head(self._project(rows.normed, "query", rows), "query_norm"), rows.cos, rows.sin)
        if (scale := self.config.attention_scale) is not None:
            query *= scale * self.config.head_width**0.5  # `attend` divides by the root
        local = None if rows.window is None else Local.within(rows.window, rows.position, known.position)
        how = {"own": rows.own, "cap": self.config.attention_cap, "local": local}
        if self.config.attention_sinks:
            how["sink_H"] = self.sinks[...]
        seen = attend(query, known.key, known.value, rows.start, rows.end, **how)
        x_BxRxD = rows.x + self._after(self._project(seen, "output", rows), "attention_post_norm")
        out_BxRxD, routing = self._feed_forward(self._before(x_BxRxD, "mlp_norm"), rows)
        return constrain(x_BxRxD + self._after(out_BxRxD, "mlp_post_norm"), "BxRxD"), routing

    def _feed_forward(self, normed_BxRxD: Array, rows: Rows) -> tuple[Array, Routing | None]:
        """A dense one, or one of experts; each has a file of its own."""
        if self.config.experts is None:
            return mlp.mlp(self.config, normed_BxRxD, lambda x, name: self._project(x, name, rows)), None
        names = (*experts.WEIGHTS, *experts.BIASES) if self.config.experts.biases else experts.WEIGHTS
        weights = {name: getattr(self, name)[...] for name in names}
        gated = functools.partial(mlp.gated, self.config)
        return experts.experts(self.config.experts, normed_BxRxD, rows.seen, gated, weights)

    def _project(self, x_BxRxi: Array, name: str, rows: Rows) -> Array:
        """The product of `rows` with a weight, and with its adapter in those that have one; and its bias, if it has one."""
        out = project(x_BxRxi, getattr(self, name)[...])
        if name in adapted(self.config):
            out = self._adapt(out, x_BxRxi, name, rows)
        bias = getattr(self, f"{name}_bias", None)
        return out if bias is None else out + bias

    def _adapt(self, out: Array, x_BxRxi: Array, name: str, rows: Rows) -> Array:
        """A product and that with the weight's adapter, in the rows that have it."""
        inner, outer = (getattr(self, factor)[...] for factor in factors(name))
        if self.config.adapter_stream == "both":
            return out + project(project(x_BxRxi, inner), outer)
        if rows.content_rows == x_BxRxi.shape[1]:
            return out
        change = project(project(rest(x_BxRxi, rows.content_rows), inner), outer)
        if rows.changed is not None:
            change = jnp.where(rows.changed.reshape(*rows.changed.shape, *[1] * (change.ndim - 2)), change, 0)
        return out + streams(jnp.zeros_like(first(out, rows.content_rows)), change)

    def _before(self, x_BxRxD: Array, norm: str) -> Array:
        """What a sublayer takes, in a model that normalizes before its sublayers."""
        return normalize(self.config, x_BxRxD, getattr(self, norm)) if self.config.pre_norm else x_BxRxD

    def _after(self, out_BxRxD: Array, norm: str) -> Array:
        """What is added of a sublayer's result, in a model that normalizes after its sublayers, or scales what they add."""
        if self.config.post_norm:
            out_BxRxD = normalize(self.config, out_BxRxD, getattr(self, norm))
        return out_BxRxD if self.config.residual_scale == 1 else out_BxRxD * self.config.residual_scale

    def _per_head(self, x_BxRxHxE: Array, norm: str) -> Array:
        """Queries or keys before they turn, normalized by head or over all heads in a model that does so."""
        if self.config.query_key_norm != "none":
            axes = (-1,) if self.config.query_key_norm == "head" else (-2, -1)
            x_BxRxHxE = normalize(self.config, x_BxRxHxE, getattr(self, norm), axes)
        return self._clipped(x_BxRxHxE)

    def _clipped(self, x: Array) -> Array:
        """Queries, keys or values, cut off in a model that does so."""
        limit = self.config.qkv_limit
        return x if limit is None else jnp.clip(x, -limit, limit)
