"""The two-stream transformer: one set of weights, a content stream that knows its tokens and a query stream that does not.

Both streams go through every layer together as *rows*, content rows first: one matrix product per weight serves both.
Keys and values come from content rows only. What a layer does with rows says `a3jax.model.block`; the passes of `TwoStream`
differ in nothing but where keys and values come from and go to:

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
import numpy as np
from flax import nnx
from jax import Array

from a3jax.attention import ATTENTION, attend
from a3jax.attention.blocks import Range
from a3jax.attention.interface import Implementation
from a3jax.config import ModelConfig
from a3jax.devices.context_parallel import streams
from a3jax.devices.mesh import constrain, scattering
from a3jax.model.adapters import content_is_fixed
from a3jax.model.block import Block, Rows, rms_norm
from a3jax.model.experts import Routing
from a3jax.model.parameters import declared, parameter
from a3jax.model.projection import PROJECTION
from a3jax.model.rope import angles
from a3jax.ordering import MaskedRows, Order, Query

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
    own: Range | None = None
    """A second range of slots that rows see, where content has one."""


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

    def copies(self, owner_R: Array | np.ndarray, slots: int) -> "Cache":
        """Caches of R sequences with room for `slots` tokens, whose beginnings are those of the sequences `owner`."""

        def copy(x: Array) -> Array:
            more = max(0, slots - x.shape[2])
            return jnp.pad(x[:, owner_R, :slots], ((0, 0), (0, 0), (0, more), (0, 0), (0, 0)))

        return Cache(*map(copy, self))


class Compute(NamedTuple):
    """How a forward pass is computed; nothing here changes what it means."""

    dtype: jnp.dtype = jnp.dtype("float32")
    attention: Implementation = "auto"
    remat: Remat = "none"
    attention_block: int | None = None
    """Of `splash`; None: by the shapes."""

    @property
    def attend(self) -> Callable[..., Array]:
        """`a3jax.attention.attend` as it is to be done here."""
        return functools.partial(attend, implementation=self.attention, block=self.attention_block)


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

    def query_hidden(self, token_BxL: Array, order: Order, compute: Compute) -> Array:
        """The normalized last hidden state of every slot's query, B x L x D in slot order.

        `token_BxL` is in window order. The head applied to slot i gives logits of the slot's token, from the tokens
        of earlier groups of its document alone. Over a mesh with `context`, orders come and slots go as
        `a3jax.devices.context_parallel.spread` lays them; so for `content_hidden`.
        """
        return self.query_pass(token_BxL, order, compute)[0]

    def query_pass(self, token_BxL: Array, order: Order, compute: Compute) -> tuple[Array, Routing | None]:
        """`query_hidden`, and what the layers' routers did: with the queries alone where the content stream is fixed."""
        content = self._content(token_BxL, order, compute)
        predecessor_BxL = sort(token_BxL, jnp.maximum(order.predecessor, 0))
        queries = self.query_stream(predecessor_BxL, order.query, order.start, order.group_start, compute)
        if content_is_fixed(self.config):
            return self.run_queries(queries, jax.lax.stop_gradient(self.run_content(content, compute)), compute)
        return self.run(content, queries, compute)

    def content_hidden(self, token_BxL: Array, order: Order, compute: Compute) -> Array:
        """The normalized last hidden state of every slot's content, B x L x D in slot order: the model's AR view."""
        return self.content_pass(token_BxL, order, compute)[0]

    def content_pass(self, token_BxL: Array, order: Order, compute: Compute) -> tuple[Array, Routing | None]:
        """`content_hidden`, and what the layers' routers did."""
        return self.run(self._content(token_BxL, order, compute), None, compute)

    def masked_hidden(self, token_BxL: Array, rows: MaskedRows, compute: Compute) -> Array:
        """The normalized last hidden state of every row of one stream that does not know masked tokens, B x R x D.

        `token_BxL` is in window order. The head applied to a row that reads token t gives logits of token t + 1: the row is
        an AR query for that token, which may see more.
        """
        return self.masked_pass(token_BxL, rows, compute)[0]

    def masked_pass(self, token_BxL: Array, rows: MaskedRows, compute: Compute) -> tuple[Array, Routing | None]:
        """`masked_hidden`, and what the layers' routers did."""
        x_BxRxD = self.embed_queries(sort(token_BxL, rows.token_index), ~rows.masked, compute)
        return self.run(Stream(x_BxRxD, rows.position, rows.start, rows.end, own=rows.own), None, compute)

    def _content(self, token_BxL: Array, order: Order, compute: Compute) -> Stream:
        token_BxL = sort(token_BxL, order.token_index)
        end_BxL = order.content_end(self.config.content)
        return self.content_stream(token_BxL, order.position, order.start, end_BxL, compute)

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

    def run(self, content: Stream, queries: Stream | None, compute: Compute) -> tuple[Array, Routing | None]:
        """Both streams, or content alone, through all layers; slot i is content row i.

        Returns the normalized last hidden states of the queries, or of the content where there are none, and what the
        routers of all layers did, if they have some.
        """
        rows, (block_of, parameters) = self._rows(content, queries), self._layers(compute)

        def layer(x_BxRxD: Array, parameters: nnx.State, last: bool) -> tuple[Array, Routing | None]:
            block = block_of(parameters)
            here = block.enter(rows, x_BxRxD)
            key, value = block.keys_values(here.content)
            return block.attend_and_mlp(here.wanted if last else here, key, value, compute.attend)

        body, tail = (_remat(functools.partial(layer, last=last), compute.remat) for last in (False, True))
        x_BxRxD, routing = jax.lax.scan(body, rows.x, jax.tree.map(lambda p: p[:-1], parameters))
        x_BxRxD, of_last = tail(x_BxRxD, jax.tree.map(lambda p: p[-1], parameters))
        routing = jax.tree.map(lambda layers, last: jnp.concatenate([layers, last[None]]), routing, of_last)
        return self._normalize(x_BxRxD, compute), routing

    def run_content(self, content: Stream, compute: Compute) -> Cache:
        """The keys and values of all slots, for queries that come without content; slot i is content row i."""
        rows, (block_of, parameters) = self._rows(content, None), self._layers(compute)

        def layer(x_BxLxD: Array, parameters: nnx.State) -> tuple[Array, tuple[Array, Array]]:
            block = block_of(parameters)
            here = block.enter(rows, x_BxLxD)
            key, value = block.keys_values(here)
            return block.attend_and_mlp(here, key, value, compute.attend)[0], (key, value)

        keys_values = jax.lax.scan(layer, rows.x, parameters)[1]
        return Cache(*(constrain(x, "NxBxLxKxE") for x in keys_values))

    def run_queries(self, queries: Stream, known: Cache, compute: Compute) -> tuple[Array, Routing | None]:
        """The normalized last hidden states of queries alone, from the keys and values of all slots; and as `run`."""
        rows, (block_of, parameters) = self._rows(None, queries), self._layers(compute)

        def layer(x_BxLxD: Array, xs: tuple[nnx.State, Cache]) -> tuple[Array, Routing | None]:
            parameters, (key, value) = xs
            block = block_of(parameters)
            return block.attend_and_mlp(block.enter(rows, x_BxLxD), key, value, compute.attend)

        x_BxLxD, routing = jax.lax.scan(_remat(layer, compute.remat), rows.x, (parameters, known))
        return self._normalize(x_BxLxD, compute), routing

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
            x_BxRxD, _ = block.attend_and_mlp(here, cache.key[layer], cache.value[layer], compute.attend)
            return (x_BxRxD, cache), None

        (x_BxRxD, cache), _ = jax.lax.scan(step, (rows.x, cache), (parameters, jnp.arange(self.config.layers)))
        return self._normalize(rows._replace(x=x_BxRxD).wanted.x, compute), cache

    def _rows(self, content: Stream | None, queries: Stream | None) -> Rows:
        """The rows of the streams that are given, before the first layer."""
        given = (stream[:4] for stream in (content, queries) if stream is not None)
        embedding, position, start, end = (functools.reduce(streams, each) for each in zip(*given))
        x_BxRxD = constrain(embedding, "BxRxD")
        content_rows = 0 if content is None else content.position.shape[1]
        changed = None if queries is None else queries.changed
        own = None if content is None else content.own
        return Rows(x_BxRxD, x_BxRxD, *angles(self.config, position), start, end, content_rows, changed, own)

    def _layers(self, compute: Compute) -> tuple[Callable[[nnx.State], Block], nnx.State]:
        """What makes a layer of its parameters, and the parameters of all N, in the type in which they are computed with."""
        graph, parameters = nnx.split(self.blocks)

        def layer(parameters: nnx.State) -> Block:
            return nnx.merge(graph, jax.tree.map(_of_a_layer, parameters, is_leaf=_is_variable))

        def computed(parameter: nnx.Variable) -> nnx.Variable:
            return (
                parameter if declared(parameter).kind == "router" else parameter.replace(parameter[...].astype(compute.dtype))
            )

        return layer, jax.tree.map(computed, parameters, is_leaf=_is_variable)

    def _normalize(self, x_BxRxD: Array, compute: Compute) -> Array:
        return rms_norm(x_BxRxD, self.final_norm[...].astype(compute.dtype), self.config.norm_eps)


def _of_a_layer(parameter: nnx.Variable) -> nnx.Variable:
    """A parameter of one layer, whose gradient every device keeps its part of; vectors are not worth it.

    Those of experts are summed by `a3jax.model.experts`.
    """
    (_, *axes), kind, _ = declared(parameter)
    if len(axes) < 2 or "D" not in axes or kind == "expert":
        return parameter
    return parameter.replace(scattering(parameter[...], tuple(axes)))


def _is_variable(leaf: object) -> bool:
    return isinstance(leaf, nnx.Variable)


def empty_cache(config: ModelConfig, batch: int, slots: int, compute: Compute) -> Cache:
    """Room for `slots` committed tokens in each of `batch` sequences."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_width)
    return Cache(*(constrain(jnp.zeros(shape, compute.dtype), "NxBxLxKxE") for _ in range(2)))


def sort(x_BxL: Array, index_BxL: Array) -> Array:
    """Window order to slot order, or any other gather along L."""
    return jnp.take_along_axis(x_BxL, index_BxL, axis=1)


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
