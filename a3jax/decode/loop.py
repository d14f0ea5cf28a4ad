"""The loop over passes: dispatches them, lets a caller look on, and reads the result once, at the end."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jax import Array

from a3jax.decode import block_diffusion, diffusion, dynamic, groups, resample, settings, speculative
from a3jax.decode.cached import Beginning, PassKind, Plan, State, begin
from a3jax.decode.mode import Mode
from a3jax.decode.settings import Decoding
from a3jax.devices.mesh import fetched
from a3jax.model.network import Network

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
assert MODES.keys() == {*get_args(settings.Mode)}


class Rows(NamedTuple):
    """A batch on its way: all that there is of each of its sequences."""

    plan: Plan
    state: State
    carry: Any
    """What the mode carries besides, if anything."""

    def filled(self) -> "Filled":
        """How it stands."""
        state = self.state
        return Filled(*fetched((state.tokens_BxL, state.log_probs_BxL, state.passes_BxL)))


class Filled(NamedTuple):
    """A batch filled, or on its way. All arrays are B x L, by place; see `a3jax.decode.cached.State`."""

    tokens_BxL: np.ndarray
    log_probs_BxL: np.ndarray
    passes_BxL: np.ndarray


Observe = Callable[[Filled], bool]
"""Called after every pass; True ends the decoding."""


def decode(
    network: Network,
    plan: Plan,
    decoding: Decoding,
    observe: Observe | None = None,
    beginning: Beginning | None = None,
) -> Filled:
    """Fill everything that is not given, as `decoding` says in what its sequences have in common.

    Without `observe`, the passes of mode groups are dispatched one after another without waiting. What is given may be read
    up to a `beginning` of all sequences, where the decoding `reads_in_order`.
    """
    mode = MODES[decoding.mode]
    rows, number = first_pass(network, plan, decoding, beginning), 1
    while not (observe is not None and observe(rows.filled())) and _goes_on(mode, rows, number):
        number += 1
        rows = next_pass(network, rows, _each(len(plan.given_B), number), decoding)
    return rows.filled()


def first_pass(
    network: Network,
    plan: Plan,
    decoding: Decoding,
    beginning: Beginning | None = None,
) -> Rows:
    """A batch after the pass that reads what is given."""
    mode = MODES[decoding.mode]
    kind = PassKind(plan.extent.prefill + mode.ahead(decoding), causal=decoding.prefill == "ar")
    if mode.anew:
        kind = _later(mode, plan, decoding)
    state = begin(network.config, network.compute, plan, planned=mode.planned, cached=mode.cached, beginning=beginning)
    return Rows(plan, *mode.advance(network, state, None, plan, _each(len(plan.given_B), 1), kind, decoding))


def next_pass(network: Network, rows: Rows, number_B: Array, decoding: Decoding) -> Rows:
    """A batch after one more pass, which is pass `number` of each sequence. What it was is the pass's to change."""
    mode, (plan, state, carry) = MODES[decoding.mode], rows
    kind = _later(mode, plan, decoding)
    return Rows(plan, *mode.advance(network, state, carry, plan, number_B, kind, decoding))


def _each(batch: int, number: int) -> Array:
    """One number for every sequence, without a program that makes it: `jnp.asarray` compiles one for every shape."""
    return jax.device_put(np.full(batch, number, np.int32))


def _later(mode: Mode, plan: Plan, decoding: Decoding) -> PassKind:
    return PassKind(mode.rows(plan, decoding), causal=mode.causal, one_stream=mode.one_stream(plan))


def _goes_on(mode: Mode, rows: Rows, number: int) -> bool:
    """Whether there is something left to fill after pass `number`."""
    if mode.passes is not None:
        return number < mode.passes(rows.plan)
    decided_B, length_B = fetched((rows.state.decided_B, rows.plan.length_B))
    return bool((decided_B < length_B).any())
