"""Generation order: which token is predicted when, and what each row of the two streams may see.

A window of L tokens holds one or more documents (segments). Every token belongs to an ordered group of its document;
tokens of one group are predicted in parallel from the groups before it. `arrange` sorts the window by (segment, group):
a token's place in that order is its *slot*. In slot order every visibility rule of the method is one contiguous range
of keys, so that no L x L mask is ever built:

    content row i sees slots [start_i, group_end_i)      its own group included, so that it knows its own token
    query row i   sees slots [start_i, group_start_i)    only the groups before its own

Given tokens (the first of every document, and a prompt) are groups of one in their original order that come first and
are never predicted: the content stream reads them exactly as the pretrained autoregressive model does.

Everything here is a pure function of its arguments; draws come from a key made of (seed, step, example).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.config import Seeding
from a3jax.curriculum.stage import Family, Part


class Order(NamedTuple):
    """One batch in generation order. Every array is B x L, in slot order."""

    token_index: Array
    """Where in the window the slot's token stands: `tokens[token_index]` sorts a window into slots."""
    predecessor: Array
    """Where in the window x_{t-1} stands if it may seed this slot's query, else -1."""
    position: Array
    """Content RoPE position: t, counted from the document's start."""
    query_position: Array
    """Query RoPE position: max(t-1, 0) under successor seeding, t under learned."""
    start: Array
    """First slot of the document."""
    group_start: Array
    group_end: Array
    causal: Array
    """Whether the slot's query sees the tokens before its own, and no others, as an AR model's does. The keys that it reads
    are an AR model's too only where no group before it holds several tokens: these see each other."""
    predicted: Array
    """Whether the slot's token counts in the loss: neither given nor padding."""


def example_keys(seed: int | Array, step: int | Array, batch: int) -> Array:
    """One random key per example, a pure function of (seed, step, example index)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda example: jax.random.fold_in(key, example))(jnp.arange(batch))


def draw_given(key: Array, segment_L: Array, family: Family, given: float, prefix: float = 0.0) -> Array:
    """Draw which tokens of one window are given as context: L bool, in window order.

    The first token of every document always is. `given` is the largest fraction of a window that is given besides, each
    window drawing its own, and `prefix` that of a document which is given as its beginning, each document drawing its own.
    `infill` blanks one span per document instead and gives the rest; the span's length is uniform up to (1 - given) x the
    document.
    """
    (length,) = segment_L.shape
    index_L = jnp.arange(length)
    start_L, end_L = _segment_bounds(_padding_last(segment_L))
    size_key, place_key = jax.random.split(key)
    first_L = index_L == start_L
    if prefix:
        drawn_L = _per_segment(jax.random.fold_in(key, 2), start_L, length)  # split() took 0 and 1
        first_L = index_L <= start_L + jnp.floor(drawn_L * prefix * (end_L - start_L - 1))
    if family == "infill":
        size_L, place_L = (_per_segment(k, start_L, length) for k in (size_key, place_key))
        free_L = (end_L - start_L - 1).astype(jnp.float32)
        blank_L = jnp.clip(jnp.ceil(size_L * free_L * (1 - given)), 1, None)
        from_L = start_L + 1 + jnp.floor(place_L * (free_L - blank_L + 1))
        return first_L | (index_L < from_L) | (index_L >= from_L + blank_L)
    fraction = jax.random.uniform(size_key, maxval=given) if given else 0.0
    return first_L | (jax.random.uniform(place_key, (length,)) < fraction)


def draw_groups(
    key: Array, segment_L: Array, given_L: Array, family: Family, group_size: int | Array, break_L: Array | None = None
) -> Array:
    """Draw one window's ordered groups: L int32, in window order; smaller groups come first.

    `in_order`         contiguous groups of `group_size`, left to right
    `right_to_left`    the same from the right
    `random`, `infill` every group is a random subset of what is not given
    `spans`            contiguous groups, in random order

    `segment_L` numbers the documents of the window from 1; 0 is padding. Given tokens are groups of one in their
    original order, before all others. Groups break at multiples of `group_size` slots, which makes them the same in
    every window without packing or prompts; those of `spans` at multiples of `group_size` tokens of the document. With
    `break_L`, groups begin at the slots marked there instead (those of `spans` at the tokens), of any size.
    """
    (length,) = segment_L.shape
    index_L = jnp.arange(length)
    start_L, end_L = _segment_bounds(_padding_last(segment_L))
    breaks_L = None if break_L is None else jnp.cumsum(break_L)

    def number(place_L: Array, origin_L: Array | int) -> Array:
        """Which group a place is in, from that of `origin_L` on."""
        if breaks_L is None:
            return (place_L - origin_L) // group_size
        return breaks_L[place_L] - breaks_L[jnp.minimum(origin_L, length - 1)]

    if family == "spans":
        chunk_L = number(index_L, start_L + 1)
        rank_L = _random_order(key, length)[start_L + 1 + chunk_L]
    else:
        given_before_L = jnp.cumsum(given_L) - given_L
        known_L = given_before_L - given_before_L[start_L]  # of the same document
        free_from_L = start_L + (given_before_L + given_L)[end_L - 1] - given_before_L[start_L]
        slot_L = jnp.where(given_L, start_L + known_L, free_from_L + index_L - start_L - known_L)
        if family == "right_to_left":
            slot_L = jnp.where(given_L, slot_L, free_from_L + end_L - 1 - slot_L)
        elif family != "in_order":
            random_L = _random_order(key, length)
            ordered_L = random_L[_order_by(jnp.where(given_L, start_L, free_from_L)[random_L], length)]
            slot_L = jnp.zeros_like(index_L).at[ordered_L].set(index_L)
        rank_L = number(slot_L, 0)
    return jnp.where(given_L, index_L, length + rank_L).astype(jnp.int32)


def arrange(group_L: Array, given_L: Array, segment_L: Array, seeding: Seeding, groups: int | None = None) -> Order:
    """Sort one window into generation order. `group_L` holds any integers; smaller groups come first.

    Padding (segment 0) goes to the end, sees nothing and is not predicted. Where the groups are known to be from 0 to
    `groups` - 1, as drawn ones are below 2 L, they are sorted faster.
    """
    (length,) = group_L.shape
    index_L = jnp.arange(length)
    segment_L = _padding_last(segment_L)
    start_L, _ = _segment_bounds(segment_L)
    by_group_L = jnp.argsort(group_L, stable=True) if groups is None else _order_by(group_L, groups)
    document_L = jnp.where(segment_L == _PADDING, length, start_L)
    token_L = by_group_L[_order_by(document_L[by_group_L], length + 1)]
    previous_L = jnp.maximum(index_L - 1, 0)
    follows_L = (index_L > start_L) & (group_L[previous_L] < group_L)
    predecessor_L = jnp.where(follows_L, previous_L, -1)
    position_L = index_L - start_L
    query_position_L = jnp.maximum(position_L - 1, 0) if seeding == "successor" else position_L

    group_L, segment_L = group_L[token_L], segment_L[token_L]
    first_of_segment = _changes(segment_L)
    first_of_group = first_of_segment | _changes(group_L)
    slot_start_L = jax.lax.cummax(jnp.where(first_of_segment, index_L, 0))
    group_start_L = jax.lax.cummax(jnp.where(first_of_group, index_L, 0))
    next_first = jnp.where(jnp.append(first_of_group[1:], True), index_L + 1, length)
    group_end_L = jax.lax.cummin(next_first, reverse=True)
    padding_L = segment_L == _PADDING
    seen_L = group_start_L - slot_start_L
    last_seen_L = jax.lax.cummax(token_L)[jnp.maximum(group_start_L - 1, 0)]  # documents are in the order of the window
    causal_L = (seen_L > 0) & (seen_L == position_L[token_L]) & (last_seen_L < token_L)
    return Order(
        token_index=token_L,
        predecessor=predecessor_L[token_L],
        position=position_L[token_L],
        query_position=query_position_L[token_L],
        start=slot_start_L,
        group_start=jnp.where(padding_L, slot_start_L, group_start_L),
        group_end=jnp.where(padding_L, slot_start_L, group_end_L),
        causal=causal_L,
        predicted=~given_L[token_L] & ~padding_L,
    )


def draw_order(keys_B: Array, segment_BxL: Array, family: Family, group_size: int, given: float, seeding: Seeding) -> Order:
    """The orders of a batch of windows, all of one kind and one group size; one key each."""
    return draw_mixture(keys_B, segment_BxL, (Part(family=family, group_size=group_size, given=given),), seeding)


def draw_mixture(
    keys_B: Array,
    segment_BxL: Array,
    parts: Sequence[Part],
    seeding: Seeding,
    weight_BxP: Array | None = None,
    size_BxP: Array | None = None,
) -> Order:
    """The orders of a batch of windows with one key each: `draw_given`, `draw_groups`, then `arrange`.

    Each window draws one of P parts. Their weights and group sizes are those of the window in `weight_BxP` and `size_BxP`,
    or else their own. A token whose segment is written as a negative number is given: context that another window predicts.
    """

    def one(key: Array, segment_L: Array, weight_P: Array | None, size_P: Array | None) -> Order:
        context_L, segment_L = segment_L < 0, jnp.abs(segment_L)
        drawn = [
            draw_part(key, segment_L, context_L, part, part.group_size if size_P is None else size_P[number])
            for number, part in enumerate(parts)
        ]
        given_L, group_L = drawn[0]
        if len(parts) > 1:
            weight_P = jnp.array([part.weight for part in parts]) if weight_P is None else weight_P
            chosen = jax.random.categorical(jax.random.fold_in(key, 2), jnp.log(weight_P))
            given_L, group_L = (jnp.stack(each)[chosen] for each in zip(*drawn))
        return arrange(group_L, given_L, segment_L, seeding, groups=2 * segment_L.shape[0])

    return jax.vmap(one)(keys_B, segment_BxL, weight_BxP, size_BxP)


def draw_part(key: Array, segment_L: Array, context_L: Array, part: Part, group_size: int | Array) -> tuple[Array, Array]:
    """`draw_given` and `draw_groups` of one window, as a part of a mixture says; `context_L` is given besides."""
    given_key, group_key = jax.random.split(key)
    size_key = jax.random.fold_in(key, 3)  # 0 and 1 are those of split(), 2 chooses the part
    break_L = None
    if part.sizes == "uniform":
        group_size = jax.random.randint(size_key, (), 1, group_size + 1)
    elif part.sizes == "geometric":  # a group ends with the same odds after each of its tokens
        break_L = jax.random.bernoulli(size_key, 1 / group_size, segment_L.shape)
    given_L = draw_given(given_key, segment_L, part.family, part.given, part.prefix) | context_L
    return given_L, draw_groups(group_key, segment_L, given_L, part.family, group_size, break_L)


_PADDING = jnp.iinfo(jnp.int32).max


def _padding_last(segment_L: Array) -> Array:
    """Segment numbers with padding's 0 replaced by the largest one, so that it sorts to the end."""
    return jnp.where(segment_L == 0, _PADDING, segment_L)


def _changes(value_L: Array) -> Array:
    """True where a value differs from the one before it, and at 0."""
    return jnp.append(True, value_L[1:] != value_L[:-1])


def _segment_bounds(segment_L: Array) -> tuple[Array, Array]:
    """For each token the first index of its segment and the index after its last."""
    index_L = jnp.arange(segment_L.shape[0])
    first_L = _changes(segment_L)
    start_L = jax.lax.cummax(jnp.where(first_L, index_L, 0))
    end_L = jax.lax.cummin(jnp.where(jnp.append(first_L[1:], True), index_L + 1, segment_L.shape[0]), reverse=True)
    return start_L, end_L


def _order_by(key_L: Array, bound: int) -> Array:
    """The indices that sort whole numbers from 0 to `bound` - 1, equal ones staying in order.

    Number and index are sorted as one 32-bit number where they fit into it: a sort that carries nothing along is several
    times as fast.
    """
    (length,) = key_L.shape
    bits = max(1, (length - 1).bit_length())
    if bound > 1 << (32 - bits):
        return jnp.argsort(key_L, stable=True).astype(jnp.int32)
    both_L = (key_L.astype(jnp.uint32) << bits) | jnp.arange(length, dtype=jnp.uint32)
    return (jnp.sort(both_L) & ((1 << bits) - 1)).astype(jnp.int32)


def _random_order(key: Array, length: int) -> Array:
    """All indices below `length` in random order. Two draw the same number, and stay in order, with odds of L / 2^32."""
    bits = max(1, (length - 1).bit_length())
    return _order_by(jax.random.bits(key, (length,)) >> bits, 1 << (32 - bits))


def _per_segment(key: Array, start_L: Array, length: int) -> Array:
    """One uniform draw per document, repeated over its tokens."""
    return jax.random.uniform(key, (length,))[start_L]
