"""The two-stream transformer: one set of weights, a content stream that knows its tokens and a query stream that does not.

Both streams go through every layer together as *rows*, content rows first: one matrix product per weight serves both.
Keys and values come from content rows only. A row carries its RoPE position and the range of slots that it sees, so the
network itself knows nothing of orders, groups or documents; `a3jax.ordering` does.

The last layer's content output would feed nothing, so its content rows stop after their keys and values. Where the
content stream itself is the answer (plain autoregression), it is run alone.

A model may have adapters: low-rank changes x W + (x A) B of its weights (Hu et al., arXiv 2106.09685), in both streams or in
the query stream alone. In the latter case the content stream is the source model for good, so nothing is differentiated
through it: it runs first and by itself, and the query rows read its keys and values.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.attention import ATTENTION, attend
from a3jax.attention.interface import Implementation
from a3jax.config import ModelConfig
from a3jax.devices.context_parallel import first, rest, streams
from a3jax.devices.mesh import constrain
from a3jax.model.adapters import adapted, content_is_fixed, factor_axes, factors, has_adapter
from a3jax.model.parameters import declared, parameter
from a3jax.model.projection import PROJECTION, project
from a3jax.model.rope import angles, rotate
from a3jax.ordering import Order

Remat = Literal["none", "dots", "offload", "full"]


class Rows(NamedTuple):
    """What one forward pass computes: R rows, the first `content` of which are content rows."""

    embedding: Array  # B x R x D
    position: Array  # B x R, RoPE
    start: Array  # B x R, first visible slot
    end: Array  # B x R, slot after the last visible one
    changed: Array | None = None  # B x R bool: whether adapters of the query stream apply; all query rows if not given


class Cache(NamedTuple):
    """Keys and values of committed slots. Content never changes once committed, so the cache is never recomputed."""

    key: Array  # N x B x L x K x E
    value: Array  # N x B x L x K x E


class Cached(NamedTuple):
    """The cache as one layer sees it, and the slot of every sequence at which new keys and values go."""

    cache: Cache
    layer: Array
    offset_B: Array

    def write(self, key_BxCxKxE: Array, value_BxCxKxE: Array) -> Cache:
        """The cache with those of the layer's new content rows. Nothing else is touched; rows beyond its end are dropped."""
        batch, rows = key_BxCxKxE.shape[:2]
        slot_BxC = self.offset_B[:, None] + jnp.arange(rows)
        where = (self.layer, jnp.arange(batch)[:, None], slot_BxC)
        key, value = self.cache
        return Cache(key.at[where].set(key_BxCxKxE, mode="drop"), value.at[where].set(value_BxCxKxE, mode="drop"))


class Known(NamedTuple):
    """Keys and values of all slots in one layer, for query rows that come without content rows."""

    key: Array  # B x L x K x E
    value: Array  # B x L x K x E


class Compute(NamedTuple):
    """How a forward pass is computed; nothing here changes what it means."""

    dtype: jnp.dtype = jnp.dtype("float32")
    attention: Implementation = "auto"
    remat: Remat = "none"


class Block(nnx.Module):
    """All N layers' parameters, stacked; `__call__` is one layer, on a module whose leading axis was taken by the scan."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare = functools.partial(parameter, config, rngs=rngs)
        ones, zeros, normal = nnx.initializers.ones, nnx.initializers.zeros, nnx.initializers.normal(0.02)
        self.attention_norm = declare("NxD", "norm", ones)
        self.query = declare("NxD->HxE", "matrix", normal)
        self.key = declare("NxD->KxE", "matrix", normal)
        self.value = declare("NxD->KxE", "matrix", normal)
        self.output = declare("NxHxE->D", "matrix", normal)
        self.mlp_norm = declare("NxD", "norm", ones)
        self.gate = declare("NxD->F", "matrix", normal)
        self.up = declare("NxD->F", "matrix", normal)
        self.down = declare("NxF->D", "matrix", normal)
        if config.qkv_bias:
            self.query_bias = declare("NxHxE", "bias", zeros)
            self.key_bias = declare("NxKxE", "bias", zeros)
            self.value_bias = declare("NxKxE", "bias", zeros)
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.query_norm = declare("NxE" if per_head else "NxHxE", "norm", ones)
            self.key_norm = declare("NxE" if per_head else "NxKxE", "norm", ones)
        weights = {name: declared(value) for name, value in vars(self).items() if isinstance(value, nnx.Param)}
        for name in [name for name, weight in weights.items() if has_adapter(config, weight)]:
            for factor, axes, begin in zip(factors(name), factor_axes(weights[name]), (normal, zeros)):
                setattr(self, factor, declare(axes, "adapter", begin))

    def __call__(
        self, rows: Rows, turn: tuple[Array, Array], content: int, skip: int, how: Compute, cached: Cached | Known | None
    ) -> tuple[Array, Cache | None]:
        """One layer over `rows`; the first `skip` rows stop after their keys and values.

        Returns the rows' new embeddings B x (R - skip) x D, and the cache, if any, with this layer's new keys and values.
        """
        x_BxRxD, changed = rows.embedding, rows.changed
        eps, pre = self.config.norm_eps, not self.config.post_norm
        normed = rms_norm(x_BxRxD, self.attention_norm, eps) if pre else x_BxRxD
        cache = None
        if isinstance(cached, Known):
            key, value = cached
        else:
            key, value = self._keys_values(first(normed, content), content, tuple(first(t, content) for t in turn))
        if isinstance(cached, Cached):
            cache = cached.write(key, value)
            key, value = cache.key[cached.layer], cache.value[cached.layer]
        x_BxRxD, normed = rest(x_BxRxD, skip), rest(normed, skip)
        changed = None if changed is None else rest(changed, content)
        query = self._queries(normed, content - skip, changed, tuple(rest(t, skip) for t in turn))
        seen = attend(query, key, value, rest(rows.start, skip), rest(rows.end, skip), how.attention)
        out = self._project(seen, "output", content - skip, changed)
        x_BxRxD += out if pre else rms_norm(out, self.attention_norm, eps)
        normed = rms_norm(x_BxRxD, self.mlp_norm, eps) if pre else x_BxRxD
        hidden = jax.nn.silu(self._project(normed, "gate", content - skip, changed))
        hidden *= self._project(normed, "up", content - skip, changed)
        out = self._project(constrain(hidden, "BxRxF"), "down", content - skip, changed)
        x_BxRxD += out if pre else rms_norm(out, self.mlp_norm, eps)
        return constrain(x_BxRxD, "BxRxD"), cache

    def _project(self, x_BxRxi: Array, name: str, content: int, changed: Array | None = None) -> Array:
        """The product with a weight, and with its adapter in the rows that have one; the first `content` are content rows.

        `changed`, B x (R - content), says which query rows have one, if not all.
        """
        out = project(x_BxRxi, getattr(self, name)[...])
        if name not in adapted(self.config):
            return out
        inner, outer = (getattr(self, factor)[...] for factor in factors(name))
        if self.config.adapter_stream == "both":
            return out + project(project(x_BxRxi, inner), outer)
        if content == x_BxRxi.shape[1]:
            return out
        change = project(project(rest(x_BxRxi, content), inner), outer)
        if changed is not None:
            change = jnp.where(changed.reshape(*changed.shape, *[1] * (change.ndim - 2)), change, 0)
        return out + streams(jnp.zeros_like(first(out, content)), change)

    def _queries(self, normed: Array, content: int, changed: Array | None, turn: tuple[Array, ...]) -> Array:
        query = self._project(normed, "query", content, changed)
        if self.config.qkv_bias:
            query += self.query_bias
        return rotate(self._normalize(query, "query_norm"), turn)

    def _keys_values(self, normed: Array, content: int, turn: tuple[Array, ...]) -> tuple[Array, Array]:
        key = self._project(normed, "key", content)
        value = self._project(normed, "value", content)
        if self.config.qkv_bias:
            key, value = key + self.key_bias, value + self.value_bias
        return rotate(self._normalize(key, "key_norm"), turn), value

    def _normalize(self, x_BxRxHxE: Array, name: str) -> Array:
        if self.config.query_key_norm == "none":
            return x_BxRxHxE
        axes = (-1,) if self.config.query_key_norm == "head" else (-2, -1)
        return rms_norm(x_BxRxHxE, getattr(self, name), self.config.norm_eps, axes)


class TwoStream(nnx.Module):
    """Embedding, N layers, final norm, head, and the learned vector that seeds queries."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare = functools.partial(parameter, config, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.embedding = declare("VxD", "embedding", normal)
        self.blocks = Block(config, rngs)
        self.final_norm = declare("D", "norm", nnx.initializers.ones)
        self.query_seed = declare("D", "seed", nnx.initializers.zeros)
        if not config.tied_head:
            self.head = declare("VxD", "head", normal)

    @property
    def output_matrix(self) -> nnx.Param:
        """V x D: the head, or the embedding where they are tied."""
        return self.embedding if self.config.tied_head else self.head

    def query_hidden(self, token_BxL: Array, order: Order, how: Compute) -> Array:
        """The normalized last hidden state of every slot's query, B x L x D in slot order.

        `token_BxL` is in window order. The head applied to slot i gives logits of the slot's token, from the tokens
        of earlier groups of its document alone. Over a mesh with `context`, orders come and slots go as
        `a3jax.devices.context_parallel.spread` lays them; so for `content_hidden`.
        """
        batch, length = token_BxL.shape
        predecessor_BxL = sort(token_BxL, jnp.maximum(order.predecessor, 0))
        embedding = self.embed_queries(predecessor_BxL, order.predecessor >= 0, how)
        query = Rows(embedding, order.query_position, order.start, order.group_start)
        content = self._content_rows(token_BxL, order, how)
        if content_is_fixed(self.config):
            query = query._replace(changed=self.changed(order.causal))
            _, cache = self.run(content, length, how, empty_cache(self.config, batch, length, how))
            return self.run_queries(query, jax.lax.stop_gradient(cast(Cache, cache)), how)
        return self.run(Rows(*(streams(*pair) for pair in zip(content[:4], query[:4]))), length, how)[0]

    def content_hidden(self, token_BxL: Array, order: Order, how: Compute) -> Array:
        """The normalized last hidden state of every slot's content, B x L x D in slot order: the model's AR view."""
        return self.run(self._content_rows(token_BxL, order, how), token_BxL.shape[1], how)[0]

    def _content_rows(self, token_BxL: Array, order: Order, how: Compute) -> Rows:
        embedding = self.embed(sort(token_BxL, order.token_index), how)
        return Rows(embedding, order.position, order.start, order.group_end)

    def embed(self, token: Array, how: Compute) -> Array:
        """Embeddings of tokens of any shape, ... x D."""
        return constrain(self.embedding[...], "VxD")[token].astype(how.dtype)

    def embed_queries(self, predecessor: Array, committed: Array, how: Compute) -> Array:
        """What queries start from: x_{t-1} where it seeds the query, else the learned vector; ... x D."""
        seed = self.query_seed[...].astype(how.dtype)
        if self.config.seeding == "learned":
            return jnp.broadcast_to(seed, (*predecessor.shape, self.config.width))
        return jnp.where(committed[..., None], self.embed(predecessor, how), seed)

    def changed(self, causal: Array) -> Array:
        """The queries to which adapters of the query stream apply: those that the source model could not have asked."""
        return ~causal if self.config.seeding == "successor" else jnp.ones_like(causal)

    def run(
        self, rows: Rows, content: int, how: Compute, cache: Cache | None = None, offset_B: Array | int = 0
    ) -> tuple[Array, Cache | None]:
        """Run rows through all layers, the first `content` of them content rows.

        Without a cache, slot i is content row i. With one, content row i is written at slot `offset` + i, and the
        updated cache is returned. The result is the normalized hidden state of the query rows, or of the content rows
        where there are no others.
        """
        turn = angles(self.config, rows.position)
        batch, count = rows.position.shape
        skip = content if content < count else 0
        graph, parameters = nnx.split(self.blocks)
        parameters = jax.tree.map(lambda p: p.astype(how.dtype), parameters)

        def layer(
            x_BxRxD: Array, parameters: nnx.State, skip: int, cached: Cached | None = None
        ) -> tuple[Array, Cache | None]:
            block = nnx.merge(graph, parameters)
            return block(rows._replace(embedding=x_BxRxD), turn, content, skip, how, cached)

        if cache is None:
            body = _remat(functools.partial(layer, skip=0), how.remat)
            tail = _remat(functools.partial(layer, skip=skip), how.remat)
            x_BxRxD = constrain(rows.embedding, "BxRxD")
            x_BxRxD, _ = jax.lax.scan(body, x_BxRxD, jax.tree.map(lambda p: p[:-1], parameters))
            x_BxRxD, _ = tail(x_BxRxD, jax.tree.map(lambda p: p[-1], parameters))
        else:
            # The cache is carried, so that it is updated in place. The last layer is not set apart: cutting it off would
            # copy all other layers' weights at every call, and a step of decoding does little else than read them.
            offset_B = jnp.broadcast_to(offset_B, batch)

            def step(carry: tuple[Array, Cache], xs: tuple[nnx.State, Array]) -> tuple[tuple[Array, Cache], None]:
                (x_BxRxD, cache), (parameters, index) = carry, xs
                x_BxRxD, filled = layer(x_BxRxD, parameters, 0, Cached(cache, index, offset_B))
                return (x_BxRxD, cast(Cache, filled)), None

            layers = jnp.arange(self.config.layers)
            (x_BxRxD, filled), _ = jax.lax.scan(step, (rows.embedding, cache), (parameters, layers))
            x_BxRxD, cache = x_BxRxD[:, skip:], filled
        return self._normalize(x_BxRxD, how), cache

    def run_queries(self, rows: Rows, known: Cache, how: Compute) -> Array:
        """The normalized hidden states of query rows alone, from the keys and values of all slots."""
        turn = angles(self.config, rows.position)
        graph, parameters = nnx.split(self.blocks)
        parameters = jax.tree.map(lambda p: p.astype(how.dtype), parameters)

        def layer(x_BxLxD: Array, xs: tuple[nnx.State, Cache]) -> tuple[Array, None]:
            parameters, known = xs
            block = nnx.merge(graph, parameters)
            return block(rows._replace(embedding=x_BxLxD), turn, 0, 0, how, Known(*known))[0], None

        return self._normalize(jax.lax.scan(_remat(layer, how.remat), rows.embedding, (parameters, known))[0], how)

    def _normalize(self, x_BxRxD: Array, how: Compute) -> Array:
        return rms_norm(x_BxRxD, self.final_norm[...].astype(how.dtype), self.config.norm_eps)


def empty_cache(config: ModelConfig, batch: int, slots: int, how: Compute) -> Cache:
    """Room for `slots` committed tokens in each of `batch` sequences."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_width)
    return Cache(*(constrain(jnp.zeros(shape, how.dtype), "NxBxLxKxE") for _ in range(2)))


def sort(x_BxL: Array, index_BxL: Array) -> Array:
    """Window order to slot order, or any other gather along L."""
    return jnp.take_along_axis(x_BxL, index_BxL, axis=1)


def rms_norm(x: Array, weight: Array, eps: float, axes: tuple[int, ...] = (-1,)) -> Array:
    """Root-mean-square normalization (Zhang & Sennrich, arXiv 1910.07467), in float32, dtype kept."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * weight


def _remat(layer: Callable, remat: Remat) -> Callable:
    policies, names = jax.checkpoint_policies, (PROJECTION, ATTENTION)
    if remat == "none":
        return layer
    if remat == "dots":
        return jax.checkpoint(layer, policy=policies.save_only_these_names(*names))
    if remat == "offload":
        keep = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=names, offload_src="device", offload_dst="pinned_host"
        )
        return jax.checkpoint(layer, policy=keep)
    return jax.checkpoint(layer)
