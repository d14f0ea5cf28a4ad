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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.attention import ATTENTION, attend
from a3jax.attention.blocks import EVERYWHERE, Range
from a3jax.config import AttentionPath, LayerKind, ModelConfig, Remat
from a3jax.devices.context_parallel import streams
from a3jax.devices.mesh import constrain, scattering
from a3jax.model.adapters import content_is_fixed
from a3jax.model.block import Block, Rows
from a3jax.model.cache import Cache, Keys
from a3jax.model.experts import Routing
from a3jax.model.head import head_logits
from a3jax.model.int8 import Int8
from a3jax.model.norm import norm_weight, normalize
from a3jax.model.parameters import declared, parameter
from a3jax.model.projection import PROJECTION
from a3jax.model.rope import angles
from a3jax.model.unstacked import OfLayer, scan, some
from a3jax.ordering import MaskedRows, Order, Query, gather


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


class Beside(NamedTuple):
    """The tokens beside those that queries ask for, B x R each; anything where a query does not know them."""

    predecessor: Array
    """x_{t-1}"""
    successor: Array
    """x_{t+1}"""


class Compute(NamedTuple):
    """How a forward pass is computed; nothing here changes what it means."""

    dtype: jnp.dtype = jnp.dtype("float32")
    attention: AttentionPath = "auto"
    remat: Remat = "none"
    attention_block: int | None = None
    """Of `splash`; None: by the shapes."""

    @property
    def attend(self) -> Callable[..., Array]:
        """`a3jax.attention.attend` as it is to be done here."""
        return functools.partial(attend, implementation=self.attention, block=self.attention_block)


class Layer(NamedTuple):
    """One layer, or with an axis N before all others, all of them."""

    parameters: nnx.State
    kind: Array
    """Which of the model's kinds of layers it is of."""


class TwoStream(nnx.Module):
    """Embedding, N layers, final norm, head, and what is learned of the seeds of queries."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        declare = functools.partial(parameter, config, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.embedding = declare("VxD", "embedding", normal)
        self.blocks = Block(config, rngs)
        self.final_norm = norm_weight(config, "D", rngs)
        self.query_seed = declare("D", "seed", nnx.initializers.zeros)
        if config.seeding == "two_sided":
            self.successor_seed = declare("D->S", "seed", nnx.initializers.zeros)
        if not config.tied_head:
            self.head = declare("VxD", "head", normal)

    @property
    def output_matrix(self) -> Array:
        """V x D: the head, or the embedding where they are tied."""
        head_VxD = self._head
        return head_VxD.rows(slice(None)) if isinstance(head_VxD, Int8) else head_VxD

    @property
    def _head(self) -> Array | Int8:
        return (self.embedding if self.config.tied_head else self.head)[...]

    def logits(self, hidden: Array) -> Array:
        """Logits of hidden states that a pass returns, ... x D to ... x V float32."""
        return head_logits(hidden, self._head, self.config.logit_cap)

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
        beside = Beside(*(gather(token_BxL, jnp.maximum(each, 0)) for each in (order.predecessor, order.successor)))
        queries = self.query_stream(beside, order.query, order.start, order.group_start, compute)
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
        x_BxRxD = self.embed_queries(gather(token_BxL, rows.token_index), ~rows.masked, compute)
        return self.run(Stream(x_BxRxD, rows.position, rows.start, rows.end, own=rows.own), None, compute)

    def _content(self, token_BxL: Array, order: Order, compute: Compute) -> Stream:
        token_BxL = gather(token_BxL, order.token_index)
        end_BxL = order.content_end(self.config.content)
        return self.content_stream(token_BxL, order.position, order.start, end_BxL, compute)

    def content_stream(self, token: Array, position: Array, start: Array, end: Array, compute: Compute) -> Stream:
        """Content rows that read tokens; all B x R."""
        return Stream(self.embed(token, compute), position, start, end)

    def query_stream(self, beside: Beside, query: Query, start: Array, end: Array, compute: Compute) -> Stream:
        """Query rows; all B x R. Tokens `beside` are anything where the query does not know them."""
        # Adapters of the query stream are for what the source model could not have been asked.
        changed = jnp.ones_like(query.causal) if self.config.seeding == "learned" else ~query.causal
        seed_BxRxD = self.embed_queries(beside.predecessor, query.known, compute)
        if self.config.seeding == "two_sided":
            # Over the root of D, as scores are: one step of Adam would move D numbers together, and what they add with them.
            weight_DxS = self.successor_seed[...].astype(compute.dtype) * self.config.width**-0.5
            seed_BxRxD += jnp.where(query.followed[..., None], self.embed(beside.successor, compute) @ weight_DxS, 0)
        return Stream(seed_BxRxD, query.position, start, end, changed)

    def embed(self, token: Array, compute: Compute) -> Array:
        """Embeddings of tokens of any shape, ... x D."""
        table_VxD = self.embedding[...]
        rows = table_VxD.rows(token) if isinstance(table_VxD, Int8) else constrain(table_VxD, "VxD")[token]
        return self._scaled(rows.astype(compute.dtype))

    def embed_queries(self, predecessor: Array, known: Array, compute: Compute) -> Array:
        """What queries start from: x_{t-1} where it is known and seeds them, else the learned vector; ... x D."""
        seed = self._scaled(self.query_seed[...].astype(compute.dtype))
        if self.config.seeding == "learned":
            return jnp.broadcast_to(seed, (*predecessor.shape, self.config.width))
        return jnp.where(known[..., None], self.embed(predecessor, compute), seed)

    def _scaled(self, embedding: Array) -> Array:
        scale = self.config.embedding_scale
        return embedding if scale == 1 else embedding * jnp.asarray(scale, embedding.dtype)

    def run(self, content: Stream, queries: Stream | None, compute: Compute) -> tuple[Array, Routing | None]:
        """Both streams, or content alone, through all layers; slot i is content row i.

        Returns the normalized last hidden states of the queries, or of the content where there are none, and what the
        routers of all layers did, if they have some.
        """
        rows, (enter, layers) = self._rows(content, queries), self._layers(compute)

        def layer(x_BxRxD: Array, own: Layer, last: bool) -> tuple[Array, Routing | None]:
            block, here = enter(own, rows, x_BxRxD)
            known = Keys(*block.keys_values(here.content), here.content.position)
            return block.attend_and_mlp(here.wanted if last else here, known, compute.attend)

        body, tail = (_remat(functools.partial(layer, last=last), compute.remat) for last in (False, True))
        x_BxRxD, routing = scan(body, rows.x, some(layers, slice(-1)))
        x_BxRxD, of_last = tail(x_BxRxD, some(layers, -1))
        routing = jax.tree.map(lambda others, last: jnp.concatenate([others, last[None]]), routing, of_last)
        return self._normalize(x_BxRxD), routing

    def run_content(self, content: Stream, compute: Compute) -> Keys:
        """The keys and values of all slots, N first, for queries that come without content; slot i is content row i."""
        rows, (enter, layers) = self._rows(content, None), self._layers(compute)

        def layer(x_BxLxD: Array, own: Layer) -> tuple[Array, tuple[Array, Array]]:
            block, here = enter(own, rows, x_BxLxD)
            key, value = block.keys_values(here)
            return block.attend_and_mlp(here, Keys(key, value, here.position), compute.attend)[0], (key, value)

        keys, values = (constrain(x, "NxBxLxKxE") for x in scan(layer, rows.x, layers)[1])
        return Keys(keys, values, rows.position)

    def run_queries(self, queries: Stream, known: Keys, compute: Compute) -> tuple[Array, Routing | None]:
        """The normalized last hidden states of queries alone, from the keys and values of all slots; and as `run`."""
        rows, (enter, layers) = self._rows(None, queries), self._layers(compute)

        def layer(x_BxLxD: Array, xs: tuple[Layer, tuple[Array, Array]]) -> tuple[Array, Routing | None]:
            own, keys_values = xs
            block, here = enter(own, rows, x_BxLxD)
            return block.attend_and_mlp(here, Keys(*keys_values, known.position), compute.attend)

        x_BxLxD, routing = scan(_remat(layer, compute.remat), rows.x, (layers, known[:2]))
        return self._normalize(x_BxLxD), routing

    def run_cached(
        self,
        content: Stream,
        queries: Stream | None,
        cache: Cache,
        offset_B: Array | int,
        compute: Compute,
        all_rows: bool = False,
    ) -> tuple[Array, Cache]:
        """`run` over a cache, which is returned too: content row i is slot `offset` + i of it, and rows see all its slots.

        What is returned may be of `all_rows`, content first. Nothing is differentiated through it.
        """
        rows, (enter, layers) = self._rows(content, queries), self._layers(compute)
        offset_B = jnp.broadcast_to(offset_B, len(rows.x))
        cache = cache.placed(offset_B, content.position)

        # The cache is carried, so that it is updated in place. The last layer is not set apart: cutting it off would
        # copy all other layers' weights at every call, and a step of decoding does little else than read them.
        def step(carry: tuple[Array, Cache], xs: tuple[Layer, Array]) -> tuple[tuple[Array, Cache], None]:
            (x_BxRxD, cache), (own, number) = carry, xs
            block, here = enter(own, rows, x_BxRxD)
            cache = cache.write(number, offset_B, *block.keys_values(here.content))
            return (block.attend_and_mlp(here, cache.layer(number), compute.attend)[0], cache), None

        (x_BxRxD, cache), _ = scan(step, (rows.x, cache), (layers, jnp.arange(self.config.layers)))
        wanted_BxRxD = x_BxRxD if all_rows else rows._replace(x=x_BxRxD).wanted.x
        return self._normalize(wanted_BxRxD), cache

    def _rows(self, content: Stream | None, queries: Stream | None) -> Rows:
        """The rows of the streams that are given, before the first layer."""
        given = (stream[:4] for stream in (content, queries) if stream is not None)
        embedding, position, start, end = (functools.reduce(streams, each) for each in zip(*given))
        x_BxRxD = constrain(embedding, "BxRxD")
        content_rows = 0 if content is None else content.position.shape[1]
        changed = None if queries is None else queries.changed
        own = None if content is None else content.own
        turns = angles(self.config, tuple(kind.rope for kind in self._kinds), position)
        return Rows(x_BxRxD, x_BxRxD, *turns, start, end, position, content_rows, changed, own)

    @property
    def _kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that there are, each once."""
        return tuple(dict.fromkeys(self.config.layer_kinds))

    def _layers(self, compute: Compute) -> tuple[Callable[[Layer, Rows, Array], tuple[Block, Rows]], Layer]:
        """What takes rows into a layer, and all N layers, their parameters in the type in which they are computed with."""
        graph, parameters = nnx.split(self.blocks)
        kinds = self._kinds
        windows = None
        if self.config.local_layers:
            windows = jnp.array([EVERYWHERE if kind.window is None else kind.window for kind in kinds])

        def enter(layer: Layer, rows: Rows, x_BxRxD: Array) -> tuple[Block, Rows]:
            block = nnx.merge(graph, jax.tree.map(_of_a_layer, layer.parameters, is_leaf=_is_variable))
            if len(kinds) > 1:
                cos, sin = (jax.lax.dynamic_slice_in_dim(turn, layer.kind, 1, axis=2) for turn in (rows.cos, rows.sin))
                rows = rows._replace(cos=cos, sin=sin)
            if windows is not None:
                rows = rows._replace(window=windows[layer.kind])
            return block, block.enter(rows, x_BxRxD)

        def computed(parameter: nnx.Variable) -> nnx.Variable:
            value, routes = parameter[...], declared(parameter).axes[-1] == "X"  # what makes a router's logits
            return parameter.replace(value if routes else value.astype(compute.dtype))

        kind_N = jnp.array([kinds.index(kind) for kind in self.config.layer_kinds])
        return enter, Layer(jax.tree.map(computed, parameters, is_leaf=_is_variable), kind_N)

    def _normalize(self, x_BxRxD: Array) -> Array:
        """What the head takes: logits' divisor divides here, where there are fewer numbers."""
        divisor, normed_BxRxD = self.config.logit_divisor, normalize(self.config, x_BxRxD, self.final_norm)
        return normed_BxRxD if divisor == 1 else normed_BxRxD / divisor


def _of_a_layer(parameter: nnx.Variable) -> nnx.Variable:
    """A parameter of one layer, whose gradient every device keeps its part of; vectors are not worth it.

    Those of experts are summed by `a3jax.model.experts`.
    """
    (_, *axes), kind, _ = declared(parameter)
    if len(axes) < 2 or "D" not in axes or kind == "expert" or isinstance(parameter[...], Int8 | OfLayer):
        return parameter
    return parameter.replace(scattering(parameter[...], tuple(axes)))


def _is_variable(leaf: object) -> bool:
    return isinstance(leaf, nnx.Variable)


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
