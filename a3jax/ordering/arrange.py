"""An order, once groups are known: slots, what every row sees, and what every query is made of.

Everything here is a pure function of its arguments.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.config import Content, Seeding
from a3jax.ordering.layout import Layout, as_it_stands
from a3jax.ordering.windows import PADDING, changes, order_by, padding_last, segment_bounds


class Order(NamedTuple):
    """One batch in generation order. Every array is B x L, in slot order."""

    token_index: Array
    """Where in the window the slot's token stands: `tokens[token_index]` sorts a window into slots."""
    predecessor: Array
    """Where in the window x_{t-1} stands if it may seed this slot's query, else -1."""
    successor: Array
    """Where in the window x_{t+1} stands if this slot's query sees it, else -1."""
    position: Array
    """Content RoPE position: t, the token's place in its document."""
    query_position: Array
    """`Query.position`."""
    start: Array
    """First slot of the document."""
    group_start: Array
    group_end: Array
    slot_end: Array
    """The slot after its own; of padding, as `group_end`, its start."""
    causal: Array
    """`Query.causal`."""
    predicted: Array
    """Whether the slot's token counts in the loss: neither given nor padding."""
    is_end: Array
    """Whether the slot's token is the end of a blank, whatever the window has there (`a3jax.ordering.layout`)."""

    def end_blanks(self, token_BxL: Array, end_tokens: Sequence[int]) -> Array:
        """The tokens of windows, B x L in window order, with the first of the model's end tokens where a blank ends."""
        is_end_BxL = jnp.take_along_axis(self.is_end, jnp.argsort(self.token_index, axis=1), axis=1)
        return jnp.where(is_end_BxL, end_tokens[0], token_BxL)

    def content_end(self, content: Content) -> Array:
        """The slot after the last one that every content row sees, as `ModelConfig.content` has it."""
        return self.group_end if content == "group" else self.slot_end

    @property
    def query(self) -> "Query":
        """What the query of every slot is made of; see `query_rule`."""
        return Query(self.query_position, self.predecessor >= 0, self.successor >= 0, self.causal)


class Query(NamedTuple):
    """What a query is made of, beside the range of slots that it sees; arrays of one shape."""

    position: Array
    """RoPE position."""
    known: Array
    """Whether x_{t-1} is committed, so that it may seed the query."""
    followed: Array
    """Whether x_{t+1} is, so that it may too."""
    causal: Array
    """Whether an AR model could have asked it: it sees the tokens before its own, and no others."""


def query_rule(
    place: Array, seen: Array, last_seen: Array, sees_previous: Array, sees_next: Array, seeding: Seeding
) -> Query:
    """The query rule: what the query for the token at `place` t of a document is, from what it sees of that document.

    It sees `seen` committed tokens, never its own; the one furthest to the right is at `last_seen` (anything where it sees
    none), `sees_previous` says whether x_{t-1} is one of them (anything where t is 0), and `sees_next` whether x_{t+1} is.
    Arrays are all of one shape, whichever that is, numpy's or JAX's.

    *Position.* Unless seeds are learned, the query is an AR query: it stands on the token before its own, at t - 1, and asks
    for the next. A first token has none before it; its query stands on 0. A learned seed is no token, and has no place of its
    own: there the query stands on t.

    *Known, followed.* x_{t-1} and x_{t+1} may seed the query only if the query sees them. One of its own group, or of a
    later one, would tell it what it must not know.

    *Causal.* A query that sees the tokens 0 to t-1 and no others is one that an AR model could have been asked, in whatever
    order they came; nothing follows it. Unless seeds are learned, its row is what that model computes at t-1, so adapters of
    the query stream leave it alone (`a3jax.model.adapters`). The tokens seen are different ones: they are those before t if
    there are t of them, and the last comes before t. A query that sees nothing is not causal: no AR model predicts a first
    token.
    """
    position = place if seeding == "learned" else jnp.maximum(place - 1, 0)
    return Query(position, (place > 0) & sees_previous, sees_next, (seen > 0) & (seen == place) & (last_seen < place))


@functools.partial(jax.jit, static_argnames=("seeding", "groups"))
def arrange(
    group_L: Array,
    given_L: Array,
    segment_L: Array,
    seeding: Seeding,
    groups: int | None = None,
    layout: Layout | None = None,
    turn_L: Array | None = None,
) -> Order:
    """Sort one window into generation order. `group_L` holds any integers; smaller groups come first.

    Tokens stand where the window has them, or where `layout` says. Padding (segment 0) goes to the end, sees nothing and is
    not predicted. Where the groups are known to be from 0 to `groups` - 1, as drawn ones are below 2 L, they are sorted
    faster. Documents may have turns, numbered in `turn_L`: all groups of a turn come before those of the next.
    """
    (length,) = group_L.shape
    index_L = jnp.arange(length)
    segment_L = padding_last(segment_L)
    start_L, end_L = segment_bounds(segment_L)
    rank_L, place_L, previous_L, next_L, is_end_L = layout or as_it_stands(start_L, end_L)
    by_group_L = jnp.argsort(group_L, stable=True) if groups is None else order_by(group_L, groups)
    turn_start_L = start_L if turn_L is None else segment_bounds(padding_last(turn_L))[0]
    turn_start_L = jnp.where(segment_L == PADDING, length, turn_start_L)
    token_L = by_group_L[order_by(turn_start_L[by_group_L], length + 1)]
    position_L = place_L[token_L]

    def sees(other_L: Array) -> Array:
        earlier_turn_L, same_turn_L = (f(turn_start_L[other_L], turn_start_L) for f in (jnp.less, jnp.equal))
        return (earlier_turn_L | (same_turn_L & (group_L[other_L] < group_L)))[token_L]

    sees_previous_L, sees_next_L = sees(previous_L), sees(next_L)

    group_L, segment_L = group_L[token_L], segment_L[token_L]
    first_of_segment = changes(segment_L)
    first_of_group = first_of_segment | changes(turn_start_L[token_L]) | changes(group_L)
    slot_start_L = jax.lax.cummax(jnp.where(first_of_segment, index_L, 0))
    group_start_L = jax.lax.cummax(jnp.where(first_of_group, index_L, 0))
    next_first = jnp.where(jnp.append(first_of_group[1:], True), index_L + 1, length)
    group_end_L = jax.lax.cummin(next_first, reverse=True)
    padding_L = segment_L == PADDING
    # Documents are in the order of the window. Where a place lies before all empty ones it is a rank, and only there is it
    # asked for, since nothing behind a gap is predicted.
    last_seen_L = jax.lax.cummax((start_L + rank_L)[token_L])[jnp.maximum(group_start_L - 1, 0)] - start_L[token_L]
    query = query_rule(position_L, group_start_L - slot_start_L, last_seen_L, sees_previous_L, sees_next_L, seeding)
    return Order(
        token_index=token_L,
        predecessor=jnp.where(query.known, previous_L[token_L], -1),
        successor=jnp.where(query.followed, next_L[token_L], -1),
        position=position_L,
        query_position=query.position,
        start=slot_start_L,
        group_start=jnp.where(padding_L, slot_start_L, group_start_L),
        group_end=jnp.where(padding_L, slot_start_L, group_end_L),
        slot_end=jnp.where(padding_L, slot_start_L, index_L + 1),
        causal=query.causal,
        predicted=~given_L[token_L] & ~padding_L,
        is_end=is_end_L[token_L],
    )
