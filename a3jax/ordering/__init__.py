"""Generation order: which token is predicted when, and what each row of the two streams may see.

A window of L tokens holds one or more documents (segments). Every token belongs to an ordered group of its document;
tokens of one group are predicted in parallel from the groups before it. `arrange` sorts the window by (segment, group):
a token's place in that order is its *slot*. In slot order every visibility rule of the method is one contiguous range
of keys, so that no L x L mask is ever built:

    content row i sees slots [start_i, group_end_i)      its own group included, so that it knows its own token
                             [start_i, i + 1)            or no further than itself (`ModelConfig.content`)
    query row i   sees slots [start_i, group_start_i)    only the groups before its own

Given tokens (the first of every document, and a prompt) are groups of one in their original order that come first and are
never predicted: the content stream reads them exactly as the pretrained autoregressive model does. Where a corpus has marked
them inside a document, as the questions of a chat with several turns, each run of them begins a turn, whose groups all come
after those of the turns before it: no answer sees a later question.

What a query is made of follows from what it sees. `query_rule` says how, for whole windows and for decoding.

Everything here is a pure function of its arguments; draws come from a key made of (seed, step, example).

`families` draws groups, `arrange` makes slots, ranges and queries of them, `draw` does both for a batch, and `sequence` for
one sequence of any length. `masking` is what masked diffusion has in their place.
"""

from a3jax.ordering.arrange import Order, Query, arrange, query_rule
from a3jax.ordering.draw import draw_mixture, draw_order, draw_part, example_keys
from a3jax.ordering.families import draw_given, draw_groups
from a3jax.ordering.masking import MaskedRows, Masking, draw_masking
from a3jax.ordering.windows import gather

__all__ = [
    "MaskedRows",
    "Masking",
    "Order",
    "Query",
    "arrange",
    "draw_given",
    "draw_groups",
    "draw_masking",
    "draw_mixture",
    "draw_order",
    "draw_part",
    "example_keys",
    "gather",
    "query_rule",
]
