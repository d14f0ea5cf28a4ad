"""The loop over passes: dispatches them, lets a caller look on, and reads the result once, at the end."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from a3jax.config import ModelConfig
from a3jax.decode import block_diffusion, diffusion, dynamic, groups, resample, speculative
from a3jax.decode.cached import Beginning, Kind, Plan, State, begin
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Decoding
from a3jax.devices.mesh import fetched
from a3jax.model.two_stream import Compute

MODES: dict[str, Mode] = {
    "ar": groups.MODE,
    "groups": groups.MODE,
    "dynamic": dynamic.MODE,
    "resample": resample.MODE,
    "speculative": speculative.MODE,
    "diffusion": diffusion.MODE,
    "block_diffusion": block_diffusion.MODE,
    "fim": groups.MODE,
}
"""How each of the modes of `a3jax.decode.settings` is done."""


class Filled(NamedTuple):
    """A batch filled, or on its way. All arrays are B x L, by place; see `a3jax.decode.cached.State`."""

    tokens_BxL: np.ndarray
    log_probs_BxL: np.ndarray
    passes_BxL: np.ndarray


Observe = Callable[[Filled], bool]
"""Called after every pass; True ends the decoding."""


def decode(
    params: nnx.State,
    config: ModelConfig,
    compute: Compute,
    plan: Plan,
    decoding: Decoding,
    observe: Observe | None = None,
    beginning: Beginning | None = None,
) -> Filled:
    """Fill everything that is not given, as `decoding` says in what its sequences have in common.

    Without `observe`, the passes of mode groups are dispatched one after another without waiting. What is given may be read
    up to a `beginning` of all sequences, where the decoding `reads_in_order`.
    """
    filled = None
    for state in _passes(params, config, compute, plan, decoding, beginning):
        if observe is not None:
            filled = _read(state)
            if observe(filled):
                return filled
    return filled if filled is not None else _read(state)


def _passes(
    params: nnx.State,
    config: ModelConfig,
    compute: Compute,
    plan: Plan,
    decoding: Decoding,
    beginning: Beginning | None,
) -> Iterator[State]:
    """The state after each pass. It is the next pass's to change: read what is wanted before going on."""
    mode = MODES[decoding.mode]
    later = Kind(config, compute, mode.rows(plan, decoding), causal=mode.causal)
    first = later if mode.anew else Kind(config, compute, plan.prefill, causal=decoding.prefill == "ar")
    state = begin(config, compute, plan, planned=mode.planned, cached=mode.cached, beginning=beginning)
    carry = mode.begin(len(plan.given_B), decoding, config)
    number, going = 0, True
    while going:
        kind, number = (later if number else first), number + 1
        state, carry = mode.advance(params, state, carry, plan, jnp.int32(number), kind, decoding)
        going = number < mode.passes(plan) if mode.passes else bool((state.decided_B < plan.length_B).any())
        yield state


def _read(state: State) -> Filled:
    return Filled(*fetched((state.tokens_BxL, state.log_probs_BxL, state.passes_BxL)))
