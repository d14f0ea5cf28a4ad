"""The order families: which tokens of a window are given, and which group every other token is in.

A family is a name in `a3jax.curriculum.stage.Family` and a row of FAMILIES: how it ranks groups and, where that is its own
too, how it draws what is given. Smaller ranks come first; tokens of one rank of a document are predicted at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.curriculum.stage import Family
from a3jax.ordering.layout import Layout, as_it_stands, with_gaps
from a3jax.ordering.windows import order_by, padding_last, per_segment, random_order, segment_bounds


class Window(NamedTuple):
    """A window whose groups are to be drawn. Every array has L entries, in window order."""

    key: Array
    given: Array
    start: Array
    """First index of the token's document."""
    end: Array
    """The index after its last."""
    number: Callable[[Array, Array | int], Array]
    """(place, origin) -> which group a place is in, counted from that of `origin`."""

    @property
    def place(self) -> Array:
        """Where every token stands."""
        return jnp.arange(self.given.shape[0])


class _Family(NamedTuple):
    """How a family draws."""

    rank: Callable[[Window], Array]
    """The group of every token that is not given, L int32 of at least 0."""
    given: Callable[[Array, Array, Array, Array, float], Array] | None = None
    """(key, context, start, end, given) -> which tokens are given besides the context, L bool; a share of them where it is
    None."""
    blanks_end: bool = False
    """Whether a blank's length is unknown, so that it ends with a token of its own; see `draw_layout`."""


def draw_given(key: Array, segment_L: Array, context_L: Array, family: Family, given: float, prefix: float = 0.0) -> Array:
    """Draw which tokens of one window are given: L bool, in window order.

    The first token of every document always is, and so is the `context`. `given` is the largest fraction of a window that is
    given besides, each window drawing its own, and `prefix` that of a document which is given as its beginning, each document
    drawing its own. `infill` and `open` blank one span per document instead and give the rest; the span's length is uniform
    up to (1 - given) x the document, of `infill` x what is no context of it.
    """
    (length,) = segment_L.shape
    index_L = jnp.arange(length)
    start_L, end_L = segment_bounds(padding_last(segment_L))
    first_L = index_L == start_L
    if prefix:
        drawn_L = per_segment(jax.random.fold_in(key, 2), start_L, length)  # 0 and 1 are those of split()
        first_L = index_L <= start_L + jnp.floor(drawn_L * prefix * (end_L - start_L - 1))
    context_L = context_L | (index_L == start_L)
    return first_L | context_L | (FAMILIES[family].given or _a_share)(key, context_L, start_L, end_L, given)


def draw_groups(
    key: Array, segment_L: Array, given_L: Array, family: Family, group_size: int | Array, break_L: Array | None = None
) -> Array:
    """Draw one window's ordered groups: L int32, in window order; smaller groups come first.

    `in_order`         contiguous groups of `group_size`, left to right
    `right_to_left`    the same from the right
    `random`, `infill` every group is a random subset of what is not given
    `spans`            contiguous groups, in random order
    `open`             contiguous groups of a blank and its end, left to right

    `segment_L` numbers the documents of the window from 1; 0 is padding. Given tokens are groups of one in their
    original order, before all others. Groups break at multiples of `group_size` slots, which makes them the same in
    every window without packing or prompts; those of `spans` at multiples of `group_size` tokens of the document. With
    `break_L`, groups begin at the slots marked there instead (those of `spans` at the tokens), of any size.
    """
    (length,) = segment_L.shape
    breaks_L = None if break_L is None else jnp.cumsum(break_L)

    def number(place_L: Array, origin_L: Array | int) -> Array:
        if breaks_L is None:
            return (place_L - origin_L) // group_size
        return breaks_L[place_L] - breaks_L[jnp.minimum(origin_L, length - 1)]

    window = Window(key, given_L, *segment_bounds(padding_last(segment_L)), number)
    return jnp.where(given_L, window.place, length + FAMILIES[family].rank(window)).astype(jnp.int32)


def draw_layout(key: Array, segment_L: Array, family: Family, given: float, slack: int) -> Layout:
    """Where the tokens of a window stand, with the key and share of `draw_given`.

    In `open` every document's blank is followed by its end and from 0 to `slack` empty places, each document drawing its own
    number; in all other families tokens stand where the window has them.
    """
    start_L, end_L = segment_bounds(padding_last(segment_L))
    if not FAMILIES[family].blanks_end:
        return as_it_stands(start_L, end_L)
    from_L, blank_L = _span(key, start_L, end_L - start_L - 2, given)
    drawn_L = per_segment(jax.random.fold_in(key, 3), start_L, len(start_L))  # 0 and 1 are those of split(), 2 is the prefix
    empty_L = jnp.floor(drawn_L * (slack + 1)).astype(jnp.int32)
    return with_gaps(start_L, end_L, start_L + 1 + (from_L + blank_L).astype(jnp.int32), empty_L)


def _in_order(window: Window) -> Array:
    return window.number(_slots(window)[0], 0)


def _right_to_left(window: Window) -> Array:
    slot_L, free_from_L = _slots(window)
    return window.number(jnp.where(window.given, slot_L, free_from_L + window.end - 1 - slot_L), 0)


def _random(window: Window) -> Array:
    _, free_from_L = _slots(window)
    (length,) = window.given.shape
    random_L = random_order(window.key, length)
    ordered_L = random_L[order_by(jnp.where(window.given, window.start, free_from_L)[random_L], length)]
    return window.number(jnp.zeros_like(window.place).at[ordered_L].set(window.place), 0)


def _spans(window: Window) -> Array:
    (length,) = window.given.shape
    chunk_L = window.number(window.place, window.start + 1)
    return random_order(window.key, length)[window.start + 1 + chunk_L]


def _slots(window: Window) -> tuple[Array, Array]:
    """Every token's slot if what is not given comes from left to right, and the first slot of its document that is free."""
    given_before_L = jnp.cumsum(window.given) - window.given
    known_L = given_before_L - given_before_L[window.start]  # of the same document
    free_from_L = window.start + (given_before_L + window.given)[window.end - 1] - given_before_L[window.start]
    slot_L = jnp.where(window.given, window.start + known_L, free_from_L + window.place - window.start - known_L)
    return slot_L, free_from_L


def _a_share(key: Array, context_L: Array, start_L: Array, end_L: Array, given: float) -> Array:
    """Tokens anywhere, each with the odds that the window draws up to `given`."""
    size_key, place_key = jax.random.split(key)
    fraction = jax.random.uniform(size_key, maxval=given) if given else 0.0
    return jax.random.uniform(place_key, start_L.shape) < fraction


def _all_but_a_span(key: Array, context_L: Array, start_L: Array, end_L: Array, given: float) -> Array:
    """All but one span of each document's tokens that are no context, of drawn size and place."""
    free_L = ~context_L
    before_L = jnp.cumsum(free_L) - free_L
    rank_L = before_L - before_L[start_L]
    from_L, blank_L = _span(key, start_L, (before_L + free_L)[end_L - 1] - before_L[start_L], given)
    return context_L | (rank_L < from_L) | (rank_L >= from_L + blank_L)


def _all_but_a_span_and_the_last(key: Array, context_L: Array, start_L: Array, end_L: Array, given: float) -> Array:
    """All but one span of each document without its last token, in whose slot the blank ends."""
    from_L, blank_L = _span(key, start_L, end_L - start_L - 2, given)
    rank_L = jnp.arange(len(start_L)) - start_L - 1
    return ((rank_L < from_L) | (rank_L >= from_L + blank_L)) & (rank_L < end_L - start_L - 2)


def _span(key: Array, start_L: Array, free_L: Array, given: float) -> tuple[Array, Array]:
    """A span of the `free` tokens of each document: how many come before it, and its size, whole numbers as float32.

    It has a token at least, where there is one.
    """
    size_key, place_key = jax.random.split(key)
    size_L, place_L = (per_segment(k, start_L, len(start_L)) for k in (size_key, place_key))
    free_L = free_L.astype(jnp.float32)
    blank_L = jnp.minimum(jnp.clip(jnp.ceil(size_L * free_L * (1 - given)), 1, None), jnp.maximum(free_L, 0))
    return jnp.floor(place_L * (free_L - blank_L + 1)), blank_L


FAMILIES: dict[Family, _Family] = {
    "in_order": _Family(_in_order),
    "right_to_left": _Family(_right_to_left),
    "random": _Family(_random),
    "spans": _Family(_spans),
    "infill": _Family(_random, _all_but_a_span),
    "open": _Family(_in_order, _all_but_a_span_and_the_last, blanks_end=True),
}
