"""The two-stream transformer: one set of weights, a content stream that knows its tokens and a query stream that does not.

Both streams go through every layer together as *rows*, content rows first: one matrix product per weight serves both.
Keys and values come from content rows only. A row carries its RoPE position and the range of slots that it sees, so the
network itself knows nothing of orders, groups or documents; `a3jax.ordering` does.

A layer does two things: `Block.keys_values` makes keys and values of content rows, and `Block.attend_and_mlp` takes all
rows, or some of them, through the rest. The passes of `TwoStream` differ in nothing but where keys and values come from and
go to:

    run          from the content rows of the pass itself
    run_cached   the same, but they are written into a cache first, and all that is in it is seen
    run_content  they are kept, layer by layer, for
    run_queries  which has query rows alone

The last layer's content output would feed nothing, so in `run` its content rows stop after their keys and values. Where the
content stream itself is the answer (plain autoregression), it is run alone.

A model may have adapters (LoRA, `a3jax.model.adapters`), in both streams or in the query stream alone. In the latter case the
content stream is the source model for good, so nothing is differentiated through it: it runs first and by itself, and the
query rows read its keys and values.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.attention import ATTENTION, attend
from a3jax.attention.interface import Implementation
from a3jax.config import ModelConfig
from a3jax.devices.context_parallel import first, rest, streams
from a3jax.devices.mesh import constrain
from a3jax.model.adapters import adapted, content_is_fixed, factors
from a3jax.model.parameters import parameter
from a3jax.model.projection import PROJECTION, project
from a3jax.model.rope import angles, rotate
from a3jax.ordering import Order, Query

Remat = Literal["none", "dots", "offload", "full"]


class Stream(NamedTuple):
    """Rows of one stream, as a pass is given them: B x R each, and D wide."""

    embedding: Array
    position: Array
    """RoPE position."""
    start: Array
    """The first slot that is seen."""
    end: Array
    """The slot after the last one that is seen."""
    changed: Array | None = None
    """Whether a query's row has the adapters of the query stream; all have them where it is None."""


class Rows(NamedTuple):
    """R rows on their way through the layers: of content, of queries, or of both side by side.

    Every device has its content rows before its query rows (`a3jax.devices.context_parallel`), and rows know where they part.
    """

    x: Array  # B x R x D
    normed: Array  # B x R x D, what a layer's first products take: x, normalized where the layer normalizes first
    cos: Array  # B x R x 1 x E/2, of each row's rotation
    sin: Array
    start: Array  # B x R
    end: Array
    content_rows: int
    changed: Array | None  # B x query rows

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

    def _part(self, cut: Callable[[Array, int], Array], content_rows: int, changed: Array | None) -> "Rows":
        x, normed, cos, sin, start, end = (cut(array, self.content_rows) for array in self[:6])
        return Rows(x, normed, cos, sin, start, end, content_rows, changed)


class Cache(NamedTuple):
    """Keys and values of slots in every layer. Content never changes once committed, so they are never computed again."""

    key: Array  # N x B x L x K x E
    value: Array  # N x B x L x K x E

    def write(self, layer: Array, offset_B: Array, key_BxCxKxE: Array, value_BxCxKxE: Array) -> "Cache":
        """The cache with new content rows of one layer from slot `offset` on; those beyond its end are dropped."""
        batch, rows = key_BxCxKxE.shape[:2]
        where = (layer, jnp.arange(batch)[:, None], offset_B[:, None] + jnp.arange(rows))
        key, value = (x.at[where].set(new, mode="drop") for x, new in zip(self, (key_BxCxKxE, value_BxCxKxE)))
        return Cache(key, value)


class Compute(NamedTuple):
    """How a forward pass is computed; nothing here changes what it means."""

    dtype: jnp.dtype = jnp.dtype("float32")
    attention: Implementation = "auto"
    remat: Remat = "none"


class Block(nnx.Module):
    """All N layers' parameters, stacked. Its methods are those of one layer, whose leading axis the scan has taken away."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare = functools.partial(parameter, config, rngs=rngs)
        ones, zeros, normal = nnx.initializers.ones, nnx.initializers.zeros, nnx.initializers.normal(0.02)
        self.attention_norm = declare("NxD", ones)
        self.query = declare("NxDxHxE", normal)
        self.key = declare("NxDxKxE", normal)
        self.value = declare("NxDxKxE", normal)
        self.output = declare("NxHxExD", normal)
        self.mlp_norm = declare("NxD", ones)
        self.gate = declare("NxDxF", normal)
        self.up = declare("NxDxF", normal)
        self.down = declare("NxFxD", normal)
        if config.qkv_bias:
            self.query_bias = declare("NxHxE", zeros)
            self.key_bias = declare("NxKxE", zeros)
            self.value_bias = declare("NxKxE", zeros)
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.query_norm = declare("NxE" if per_head else "NxHxE", ones)
            self.key_norm = declare("NxE" if per_head else "NxKxE", ones)
        for name, (inner, outer) in adapted(config).items():
            for factor, axes, begin in zip(factors(name), (inner, outer), (normal, zeros)):
                setattr(self, factor, declare(axes, begin))

    def enter(self, rows: Rows, x_BxRxD: Array) -> Rows:
        """The rows as they come into this layer."""
        return rows._replace(x=x_BxRxD, normed=self._before(x_BxRxD, "attention_norm"))

    def keys_values(self, content: Rows) -> tuple[Array, Array]:
        """Keys and values of content rows, B x R x K x E each."""
        key, value = (self._project(content.normed, name, content) for name in ("key", "value"))
        if self.config.qkv_bias:
            key, value = key + self.key_bias, value + self.value_bias
        return rotate(self._per_head(key, "key_norm"), content.cos, content.sin), value

    def attend_and_mlp(self, rows: Rows, key_BxLxKxE: Array, value_BxLxKxE: Array, attention: Implementation) -> Array:
        """The rest of the layer: the rows' new embeddings, B x R x D, from the keys and values that they may see."""
        query = self._project(rows.normed, "query", rows)
        if self.config.qkv_bias:
            query += self.query_bias
        query = rotate(self._per_head(query, "query_norm"), rows.cos, rows.sin)
        seen = attend(query, key_BxLxKxE, value_BxLxKxE, rows.start, rows.end, attention)
        x_BxRxD = rows.x + self._after(self._project(seen, "output", rows), "attention_norm")

        normed = self._before(x_BxRxD, "mlp_norm")
        hidden = jax.nn.silu(self._project(normed, "gate", rows)) * self._project(normed, "up", rows)
        out = self._project(constrain(hidden, "BxRxF"), "down", rows)
        return constrain(x_BxRxD + self._after(out, "mlp_norm"), "BxRxD")

    def _project(self, x_BxRxi: Array, name: str, rows: Rows) -> Array:
        """The product of `rows` with a weight, and with its adapter in those that have one."""
        out = project(x_BxRxi, getattr(self, name)[...])
        if name not in adapted(self.config):
            return out
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
        return x_BxRxD if self.config.post_norm else rms_norm(x_BxRxD, getattr(self, norm), self.config.norm_eps)

    def _after(self, out_BxRxD: Array, norm: str) -> Array:
        """What is added of a sublayer's result, in a model that normalizes after its sublayers."""
        return rms_norm(out_BxRxD, getattr(self, norm), self.config.norm_eps) if self.config.post_norm else out_BxRxD

    def _per_head(self, x_BxRxHxE: Array, norm: str) -> Array:
        """Queries or keys, normalized by head or over all heads in a model that does so."""
        if self.config.query_key_norm == "none":
            return x_BxRxHxE
        axes = (-1,) if self.config.query_key_norm == "head" else (-2, -1)
        return rms_norm(x_BxRxHxE, getattr(self, norm), self.config.norm_eps, axes)


class TwoStream(nnx.Module):
    """Embedding, N layers, final norm, head, and the learned vector that seeds queries."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare = functools.partial(parameter, config, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.embedding = declare("VxD", normal)
        self.blocks = Block(config, rngs)
        self.final_norm = declare("D", nnx.initializers.ones)
        self.query_seed = declare("D", nnx.initializers.zeros)
        if not config.tied_head:
            self.head = declare("VxD", normal)

    @property
    def output_matrix(self) -> nnx.Param:
        """V x D: the head, or the embedding where they are tied."""
        return self.embedding if self.config.tied_head else self.head

    def query_hidden(self, token_BxL: Array, order: Order, compute: Compute) -> Array:
        """The normalized last hidden state of every slot's query, B x L x D in slot order.

        `token_BxL` is in window order. The head applied to slot i gives logits of the slot's token, from the tokens
        of earlier groups of its document alone. Over a mesh with `context`, orders come and slots go as
        `a3jax.devices.context_parallel.spread` lays them; so for `content_hidden`.
        """
        content = self._content(token_BxL, order, compute)
        predecessor_BxL = sort(token_BxL, jnp.maximum(order.predecessor, 0))
        queries = self.query_stream(predecessor_BxL, order.query, order.start, order.group_start, compute)
        if content_is_fixed(self.config):
            return self.run_queries(queries, jax.lax.stop_gradient(self.run_content(content, compute)), compute)
        return self.run(content, queries, compute)

    def content_hidden(self, token_BxL: Array, order: Order, compute: Compute) -> Array:
        """The normalized last hidden state of every slot's content, B x L x D in slot order: the model's AR view."""
        return self.run(self._content(token_BxL, order, compute), None, compute)

    def _content(self, token_BxL: Array, order: Order, compute: Compute) -> Stream:
        token_BxL = sort(token_BxL, order.token_index)
        return self.content_stream(token_BxL, order.position, order.start, order.group_end, compute)

    def content_stream(self, token: Array, position: Array, start: Array, end: Array, compute: Compute) -> Stream:
        """Content rows that read tokens; all B x R."""
        return Stream(self.embed(token, compute), position, start, end)

    def query_stream(self, predecessor: Array, query: Query, start: Array, end: Array, compute: Compute) -> Stream:
        """Query rows; all B x R. `predecessor` is x_{t-1}, or anything where the query does not know it."""
        # Adapters of the query stream are for what the source model could not have been asked.
        changed = ~query.causal if self.config.seeding == "successor" else jnp.ones_like(query.causal)
        return Stream(self.embed_queries(predecessor, query.known, compute), query.position, start, end, changed)

    def embed(self, token: Array, compute: Compute) -> Array:
        """Embeddings of tokens of any shape, ... x D."""
        return constrain(self.embedding[...], "VxD")[token].astype(compute.dtype)

    def embed_queries(self, predecessor: Array, known: Array, compute: Compute) -> Array:
        """What queries start from: x_{t-1} where it is known and seeds them, else the learned vector; ... x D."""
        seed = self.query_seed[...].astype(compute.dtype)
        if self.config.seeding == "learned":
            return jnp.broadcast_to(seed, (*predecessor.shape, self.config.width))
        return jnp.where(known[..., None], self.embed(predecessor, compute), seed)

    def run(self, content: Stream, queries: Stream | None, compute: Compute) -> Array:
        """Both streams, or content alone, through all layers; slot i is content row i.

        Returns the normalized last hidden states of the queries, or of the content where there are none.
        """
        rows, (block_of, parameters) = self._rows(content, queries), self._layers(compute)

        def layer(x_BxRxD: Array, parameters: nnx.State, last: bool) -> tuple[Array, None]:
            block = block_of(parameters)
            here = block.enter(rows, x_BxRxD)
            key, value = block.keys_values(here.content)
            return block.attend_and_mlp(here.wanted if last else here, key, value, compute.attention), None

        body, tail = (_remat(functools.partial(layer, last=last), compute.remat) for last in (False, True))
        x_BxRxD, _ = jax.lax.scan(body, rows.x, jax.tree.map(lambda p: p[:-1], parameters))
        x_BxRxD, _ = tail(x_BxRxD, jax.tree.map(lambda p: p[-1], parameters))
        return self._normalize(x_BxRxD, compute)

    def run_content(self, content: Stream, compute: Compute) -> Cache:
        """The keys and values of all slots, for queries that come without content; slot i is content row i."""
        rows, (block_of, parameters) = self._rows(content, None), self._layers(compute)

        def layer(x_BxLxD: Array, parameters: nnx.State) -> tuple[Array, tuple[Array, Array]]:
            block = block_of(parameters)
            here = block.enter(rows, x_BxLxD)
            key, value = block.keys_values(here)
            return block.attend_and_mlp(here, key, value, compute.attention), (key, value)

        keys_values = jax.lax.scan(layer, rows.x, parameters)[1]
        return Cache(*(constrain(x, "NxBxLxKxE") for x in keys_values))

    def run_queries(self, queries: Stream, known: Cache, compute: Compute) -> Array:
        """The normalized last hidden states of queries alone, from the keys and values of all slots."""
        rows, (block_of, parameters) = self._rows(None, queries), self._layers(compute)

        def layer(x_BxLxD: Array, xs: tuple[nnx.State, Cache]) -> tuple[Array, None]:
            parameters, (key, value) = xs
            block = block_of(parameters)
            return block.attend_and_mlp(block.enter(rows, x_BxLxD), key, value, compute.attention), None

        return self._normalize(jax.lax.scan(_remat(layer, compute.remat), rows.x, (parameters, known))[0], compute)

    def run_cached(
        self, content: Stream, queries: Stream | None, cache: Cache, offset_B: Array | int, compute: Compute
    ) -> tuple[Array, Cache]:
        """`run` over a cache, which is returned too: content row i is slot `offset` + i of it, and rows see all its slots.

        Nothing is differentiated through it.
        """
        rows, (block_of, parameters) = self._rows(content, queries), self._layers(compute)
        offset_B = jnp.broadcast_to(offset_B, len(rows.x))

        # The cache is carried, so that it is updated in place. The last layer is not set apart: cutting it off would
        # copy all other layers' weights at every call, and a step of decoding does little else than read them.
        def step(carry: tuple[Array, Cache], xs: tuple[nnx.State, Array]) -> tuple[tuple[Array, Cache], None]:
            (x_BxRxD, cache), (parameters, layer) = carry, xs
            block = block_of(parameters)
            here = block.enter(rows, x_BxRxD)
            cache = cache.write(layer, offset_B, *block.keys_values(here.content))
            return (block.attend_and_mlp(here, cache.key[layer], cache.value[layer], compute.attention), cache), None

        (x_BxRxD, cache), _ = jax.lax.scan(step, (rows.x, cache), (parameters, jnp.arange(self.config.layers)))
        return self._normalize(rows._replace(x=x_BxRxD).wanted.x, compute), cache

    def _rows(self, content: Stream | None, queries: Stream | None) -> Rows:
        """The rows of the streams that are given, before the first layer."""
        given = (stream[:4] for stream in (content, queries) if stream is not None)
        embedding, position, start, end = (functools.reduce(streams, each) for each in zip(*given))
        x_BxRxD = constrain(embedding, "BxRxD")
        content_rows = 0 if content is None else content.position.shape[1]
        changed = None if queries is None else queries.changed
        return Rows(x_BxRxD, x_BxRxD, *angles(self.config, position), start, end, content_rows, changed)

    def _layers(self, compute: Compute) -> tuple[Callable[[nnx.State], Block], nnx.State]:
        """What makes a layer of its parameters, and the parameters of all N, in the type in which they are computed with."""
        graph, parameters = nnx.split(self.blocks)
        return functools.partial(nnx.merge, graph), jax.tree.map(lambda p: p.astype(compute.dtype), parameters)

    def _normalize(self, x_BxRxD: Array, compute: Compute) -> Array:
        return rms_norm(x_BxRxD, self.final_norm[...].astype(compute.dtype), self.config.norm_eps)


def empty_cache(config: ModelConfig, batch: int, slots: int, compute: Compute) -> Cache:
    """Room for `slots` committed tokens in each of `batch` sequences."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_width)
    return Cache(*(constrain(jnp.zeros(shape, compute.dtype), "NxBxLxKxE") for _ in range(2)))


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
