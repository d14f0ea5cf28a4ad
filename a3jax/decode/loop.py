"""The loop over passes: dispatches them, lets a caller look on, and reads the result once, at the end."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from a3jax.config import ModelConfig
from a3jax.decode.cached import Kind, Plan, State, begin
from a3jax.decode.dynamic import decode_certain
from a3jax.decode.groups import decode_group
from a3jax.decode.settings import Decoding
from a3jax.decode.speculative import decode_drafted, no_drafts
from a3jax.model.two_stream import Compute


class Filled(NamedTuple):
    """A batch filled, or on its way. All arrays are B x L, by place; see `a3jax.decode.cached.State`."""

    tokens_BxL: np.ndarray
    log_probs_BxL: np.ndarray
    passes_BxL: np.ndarray


Observe = Callable[[Filled], bool]
"""Called after every pass; True ends the decoding."""


def decode(
    params: nnx.State, config: ModelConfig, compute: Compute, plan: Plan, decoding: Decoding, observe: Observe | None = None
) -> Filled:
    """Fill everything that is not given, as `decoding` says in what its sequences have in common.

    Without `observe`, the passes of mode groups are dispatched one after another without waiting.
    """
    filled = None
    for state in _passes(params, config, compute, plan, decoding):
        if observe is not None:
            filled = _read(state)
            if observe(filled):
                return filled
    return filled if filled is not None else _read(state)


def _passes(params: nnx.State, config: ModelConfig, compute: Compute, plan: Plan, decoding: Decoding) -> Iterator[State]:
    """The state after each pass. It is the next pass's to change: read what is wanted before going on."""
    mode = "groups" if decoding.mode == "ar" else decoding.mode
    reading = {"groups": plan.rows, "dynamic": decoding.commit, "speculative": decoding.drafts + 1}[mode]
    first = Kind(config, compute, plan.prefill, causal=decoding.prefill == "ar")
    later = Kind(config, compute, reading, causal=mode == "speculative")
    state = begin(config, compute, plan, planned=mode != "dynamic")
    batch = len(plan.given_B)
    drafts = no_drafts(batch, decoding.drafts, config.vocab) if mode == "speculative" else None
    number, going = 0, True
    while going:
        kind, number = (later if number else first), number + 1
        counted = jnp.int32(number)
        if mode == "groups":
            state = decode_group(params, state, plan, counted, kind, plan.rows)
            going = number < plan.groups
        elif drafts is not None:
            state, drafts = decode_drafted(params, state, drafts, plan, counted, kind)
            going = bool((state.decided_B < plan.length_B).any())
        else:
            window = min(decoding.window, plan.tokens_BxL.shape[1])
            state = decode_certain(params, state, plan, counted, kind, window, decoding.commit, decoding.certainty)
            going = bool((state.decided_B < plan.length_B).any())
        yield state


def _read(state: State) -> Filled:
    return Filled(*jax.device_get((state.tokens_BxL, state.log_probs_BxL, state.passes_BxL)))
