"""Where the tokens of a window stand in their documents, where that is not where the window has them.

A blank of unknown length is a gap: what follows it stands at a place that does not depend on what is filled in, since nobody
knows it yet. A document of which a span of n tokens is blanked is laid out so:

    window    a  b  c  d  e  f  g  h        span: c d e
    document  a  b  c  d  e  #  .  .  f  g  #: the end of the blank, .: places that stay empty

The end is a token of its own, which is predicted like any other, and says that what follows the span comes next. It takes
the window's slot of the document's last token (h), so that arrays keep their shapes, and that token drops out. How many
places stay empty is drawn, up to a slack: the place of f tells of n only that a gap of m places has n from m - 1 - slack to
m - 1.

Everything here is a pure function of its arguments.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Layout(NamedTuple):
    """Where the tokens of one window stand. Every array has L entries, in window order."""

    rank: Array
    """How many tokens of its document stand before it."""
    place: Array
    """Where it stands, counted from the document's start, empty places included."""
    previous: Array
    """Where in the window stands the token of the place before its own; the token itself where there is none."""
    next: Array
    """Where in the window stands the token of the place after its own; the token itself where there is none."""
    is_end: Array
    """Whether it is the end of a blank, whatever token the window has there."""


def as_it_stands(start_L: Array, end_L: Array) -> Layout:
    """The layout of documents [start, end) without blanks of unknown length."""
    index_L = jnp.arange(start_L.shape[0])
    place_L = index_L - start_L
    previous_L, next_L = jnp.maximum(index_L - 1, start_L), jnp.minimum(index_L + 1, end_L - 1)
    return Layout(place_L, place_L, previous_L, next_L, jnp.zeros_like(place_L, bool))


def with_gaps(start_L: Array, end_L: Array, blank_end_L: Array, empty_L: Array) -> Layout:
    """The layout of documents [start, end) whose blanks end before index `blank_end`, with `empty` places behind each.

    A document of one token has no blank.
    """
    index_L = jnp.arange(start_L.shape[0])
    is_end_L = (index_L == end_L - 1) & (index_L > start_L)
    stands_L = jnp.where(is_end_L, blank_end_L, index_L + (index_L >= blank_end_L))
    after_L = stands_L > blank_end_L
    rank_L = stands_L - start_L
    token_at_L = jnp.zeros_like(index_L).at[stands_L].set(index_L)
    alone_L = (rank_L == 0) | (stands_L == blank_end_L + 1)  # a document's first token, and the first behind a gap
    place_L = rank_L + jnp.where(after_L, empty_L, 0)
    follows_L = token_at_L[jnp.minimum(stands_L + 1, end_L - 1)]
    return Layout(
        rank=rank_L,
        place=place_L,
        previous=jnp.where(alone_L, index_L, token_at_L[stands_L - 1]),
        next=jnp.where(place_L[follows_L] == place_L + 1, follows_L, index_L),
        is_end=is_end_L,
    )
