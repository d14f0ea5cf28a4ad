"""What a checkpoint computes here on a few fixed inputs, in float32, for another implementation to be held against."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from a3jax.checkpoint.folder import Checkpoint
from a3jax.data.tokenizer import TextCodec
from a3jax.decode.cached import plan
from a3jax.decode.loop import decode
from a3jax.decode.settings import Decoding
from a3jax.devices.mesh import check_mesh, fetched, filled_up
from a3jax.model.network import Network
from a3jax.model.two_stream import Compute
from a3jax.ordering import Order, arrange, gather
from a3jax.weights.pretrained import Pretrained
from a3jax.weights.whole import dtype_name

BATCH, LENGTH, GIVEN = 2, 96, 8
GROUP_SIZES = (1, 3, 8)
"""Of random groups, behind a few given tokens."""
GENERATED = 64
"""Tokens that are generated from left to right."""
INFILL_SIZE = 4
"""Tokens that are filled in at a time, in random order."""
TEXT = '''\
The sun had set behind the hills, and the village was quiet. An old man sat on the steps of his house and told the
children how the river had once been a road. "Every spring," he said, "it forgets where it came from."

def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    return sum(values) / len(values)
'''


class Forward(NamedTuple):
    """Random tokens, and the logits that one forward pass gives, in token order."""

    tokens_BxT: np.ndarray
    groups_BxT: np.ndarray | None
    """Those of the query stream; None for the content stream as a plain autoregressive model."""
    logits_BxTxV: np.ndarray


class Greedy(NamedTuple):
    """A text with N blanks, what the cached decoder puts into them greedily, and why."""

    tokens_T: np.ndarray
    """Zero in the blanks."""
    blank_T: np.ndarray
    rank_T: np.ndarray
    """A token's place in the order of generation."""
    index_N: np.ndarray
    """Where the blanks are, in the order of generation."""
    chosen_N: np.ndarray
    logits_NxV: np.ndarray
    """Minus infinity where a token may not be chosen."""


class Probes(NamedTuple):
    """Everything that is computed of one checkpoint."""

    forwards: list[Forward]
    generated: Greedy
    """A text continued from left to right, with any token."""
    infilled: Greedy | None
    """A text with half its tokens blank, filled with plain text in random groups."""


def probe(
    checkpoint: Checkpoint, dtype: str, codec: TextCodec, fillable_V: np.ndarray | None, mesh: Mesh | None = None
) -> Probes:
    """Compute with the checkpoint's weights, rounded to `dtype` first if they are kept in another, over the mesh in use.

    Without `fillable_V`, only what the family's own class can do: the left-to-right view.
    """
    config = checkpoint.config
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, config.vocab, (BATCH, min(LENGTH, config.context)))
    text = np.array(([] if codec.start is None else [codec.start]) + codec.encode(TEXT))
    if codec.start is not None:
        tokens[:, 0] = codec.start
    every_V = np.ones(config.vocab, bool)
    new = min(GENERATED, config.context // 2)
    text = text[: min(LENGTH, config.context - new)]
    continued, ahead = np.append(text, np.zeros(new, int)), np.arange(len(text) + new) >= len(text)
    network = Network(config, _params(checkpoint, dtype, mesh), Compute())
    with jax.default_matmul_precision("highest"):
        if fillable_V is None:  # its queries are those of a plain autoregressive model, whatever ours are
            seeding = "successor" if config.seeding == "learned" else config.seeding
            network = dataclasses.replace(network, config=dataclasses.replace(config, seeding=seeding))
            forward = _forward(network, tokens, None)
            return Probes([forward], _greedy(network, continued, ahead, "ar", every_V), None)
        # With learned seeds the twin predicts from left to right with its queries as well.
        forwards = [] if config.seeding == "learned" else [_forward(network, tokens, None)]
        forwards += [_forward(network, tokens, groups) for groups in _groups(draw, tokens.shape)]
        blank = np.isin(np.arange(len(text)), 1 + draw.permutation(len(text) - 1)[: (len(text) - 1) // 2])
        generated = _greedy(network, continued, ahead, "ar", every_V)
        infilled = _greedy(network, text, blank, f"random_{INFILL_SIZE}", fillable_V)
        return Probes(forwards, generated, infilled)


def _params(checkpoint: Checkpoint, dtype: str, mesh: Mesh | None) -> nnx.State:
    if mesh is not None:
        check_mesh(mesh, checkpoint.config)
    params = Pretrained(checkpoint).load(mesh)
    if dtype_name(checkpoint) == dtype:  # nothing is rounded, of several dtypes either
        return params
    # In two programs: a compiler may leave out a rounding that is undone at once.
    return jax.tree.map(lambda array: array.astype(dtype).astype(jnp.float32), params)


def _groups(draw: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """B x T: left to right, and random groups of each size after a few given tokens."""
    index = np.broadcast_to(np.arange(shape[1]), shape)
    given = min(GIVEN, shape[1] - 1)
    orders = [index.copy()]
    for size in GROUP_SIZES:
        later = given + draw.permuted(index[:, given:] - given, axis=1) // size
        orders.append(np.concatenate([index[:, :given], later], axis=1))
    return orders


def _forward(network: Network, tokens: np.ndarray, groups: np.ndarray | None) -> Forward:
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    group_BxT = jnp.asarray(_filled_up(index if groups is None else groups), jnp.int32)
    nothing_BxT, document_BxT = jnp.zeros_like(group_BxT, bool), jnp.ones_like(group_BxT)
    order = jax.vmap(lambda g, given, s: arrange(g, given, s, network.config.seeding))(group_BxT, nothing_BxT, document_BxT)
    hidden_BxTxD = _hidden(network, jnp.asarray(_filled_up(tokens)), order, query=groups is not None)
    return Forward(tokens, groups, _logits(network, hidden_BxTxD)[: len(tokens)])


def _filled_up(rows: np.ndarray) -> np.ndarray:
    """As many rows as the mesh in use splits evenly."""
    return np.stack(filled_up(list(rows)))


def _greedy(network: Network, tokens: np.ndarray, blank: np.ndarray, order: str, allowed_V: np.ndarray) -> Greedy:
    tokens_T = np.where(blank, 0, tokens)
    decoding = Decoding(order=order)
    rows = len(filled_up([tokens_T]))
    tokens, given = [tokens_T.tolist()] * rows, [(~blank).tolist()] * rows
    planned = plan([decoding] * rows, tokens, given, network.config, jnp.asarray(np.stack([allowed_V] * rows)))
    filled = decode(network, planned, decoding)
    rank_T = np.argsort(planned.order.token_index[0])[: len(tokens_T)]
    index_N = np.flatnonzero(blank)[np.argsort(rank_T[blank])]
    hidden_NxD = _hidden(network, jnp.asarray(filled.tokens_BxL), planned.order, query=True)[0, index_N]
    logits_NxV = np.where(allowed_V, _logits(network, hidden_NxD), -np.inf)
    return Greedy(tokens_T, blank, rank_T, index_N, filled.tokens_BxL[0, index_N], logits_NxV)


@functools.partial(jax.jit, static_argnames="query")
def _hidden(network: Network, tokens_BxL: Array, order: Order, query: bool) -> Array:
    """Last hidden states of one stream, in token order."""
    module = network.module()
    hidden_BxLxD = (module.query_hidden if query else module.content_hidden)(tokens_BxL, order, network.compute)
    return gather(hidden_BxLxD, jnp.argsort(order.token_index, axis=1))


def _logits(network: Network, hidden: Any) -> np.ndarray:
    return fetched(network.module().logits(jnp.asarray(hidden)))
