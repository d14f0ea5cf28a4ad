"""What the loop wants to know of a way to fill blanks; each stands in a file of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from a3jax.decode.cached import PassKind, Plan, State
from a3jax.decode.settings import Decoding
from a3jax.model.network import Network

Advance = Callable[[Network, State, Any, Plan, Array, PassKind, Decoding], tuple[State, Any]]
"""One pass: network, state, what is carried, plan, which pass of each sequence it is, from 1, its kind, decoding -> the
state and what is carried then. Both are donated. Before the first pass nothing is carried: None."""


class Mode(NamedTuple):
    """A way to fill blanks."""

    advance: Advance
    rows: Callable[[Plan, Decoding], int]
    """Tokens that a pass after the first may have to read."""
    planned: bool
    """Whether the order is known beforehand; else places get their slots when they are decided."""
    causal: bool
    """Whether a token that is read sees those read before it only, or all that are read in the same pass."""
    anew: bool = False
    """Whether every pass, the first too, reads all that is decided as one group; else one reads what was decided last, and
    the first what is given, as `Decoding.prefill` says."""
    passes: Callable[[Plan], int] | None = None
    """How many passes it takes, where the plan tells; else passes go on until all is decided."""
    one_stream: Callable[[Plan], bool] = lambda plan: False
    """Whether in passes after the first the row that reads a token predicts the next."""
    cached: bool = True
    """Whether passes keep keys and values of what is decided."""
    ahead: Callable[[Decoding], int] = lambda decoding: 0
    """Tokens that the first pass may have to read besides what is given."""
