"""Choosing tokens from logits: temperature, top-k, top-p (Holtzman et al., arXiv 1904.09751), min-p (Nguyen et al.,
arXiv 2407.01082) and a repetition penalty (Keskar et al., arXiv 1909.05858), or greedily.

The choice may be sharpened and filtered, its reported log-probability never is: it is the token's under the model's own
distribution, so that log-probabilities add up to the likelihood of the text whatever chose it. All settings are traced
values, one for each sequence; changing them compiles nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode.settings import Decoding


class Sampling(NamedTuple):
    """`Decoding`'s fields of the same names, for each sequence of a batch."""

    temperature_B: Array
    top_k_B: Array
    top_p_B: Array
    min_p_B: Array
    penalty_B: Array


def sampling_of(decodings: Sequence[Decoding]) -> Sampling:
    """How each sequence chooses its tokens."""

    def column(name: str, dtype: type) -> Array:
        return jax.device_put(np.array([getattr(decoding, name) for decoding in decodings], dtype))

    return Sampling(
        column("temperature", jnp.float32),
        column("top_k", jnp.int32),
        column("top_p", jnp.float32),
        column("min_p", jnp.float32),
        column("repetition_penalty", jnp.float32),
    )


def choices(logits_BxSxV: Array, sampling: Sampling, allowed_BxV: Array, seen_BxSxV: Array) -> Array:
    """Logits of the distribution that tokens are drawn from, B x S x V float32; -inf for what is never drawn.

    `seen` marks the tokens that a row's penalty falls on. Without temperature the most probable token alone is left.
    """
    temperature, top_k, top_p, min_p, penalty = (x_B[:, None, None] for x_B in sampling)
    logits = logits_BxSxV.astype(jnp.float32)
    logits = jnp.where(seen_BxSxV, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    logits = jnp.where(allowed_BxV[:, None], logits, -jnp.inf)
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    greedy = jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)

    def drawn() -> Array:
        # The largest becomes 0, so that no temperature, however low, overflows.
        sharpened = (logits - logits.max(axis=-1, keepdims=True)) / jnp.where(temperature > 0, temperature, 1.0)
        filtering = ((top_k > 0) | (top_p < 1)).any()
        filtered = jax.lax.cond(
            filtering, lambda: jnp.where(kept(sharpened, top_k, top_p), sharpened, -jnp.inf), lambda: sharpened
        )
        return jnp.where(filtered >= jnp.log(min_p), filtered, -jnp.inf)

    return jnp.where(temperature > 0, jax.lax.cond((temperature > 0).any(), drawn, lambda: greedy), greedy)


def draw(keys_BxS: Array, choices_BxSxV: Array, sampling: Sampling) -> Array:
    """A token for every row, B x S int32, each drawn with its own key."""

    def gumbel() -> Array:
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, choices_BxSxV.shape[-1:], jnp.float32)))
        return choices_BxSxV + noise(keys_BxS)

    noisy = jax.lax.cond((sampling.temperature_B > 0).any(), gumbel, lambda: choices_BxSxV)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def log_prob(logits_BxSxV: Array, token_BxS: Array) -> Array:
    """Nats of tokens under the model's own distribution, B x S float32: temperature 1, nothing filtered."""
    logits = logits_BxSxV.astype(jnp.float32)
    return jnp.take_along_axis(logits, token_BxS[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def kept(logits_xV: Array, top_k_x1: Array | int, top_p_x1: Array | float) -> Array:
    """Which tokens survive top-k, then top-p among those, ... x V bool. Of equal logits the lower id goes first.

    top-p keeps the fewest tokens whose probabilities reach it, at least one.
    """
    by_rank = jnp.argsort(-logits_xV, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits_xV, by_rank, axis=-1)
    among = (jnp.arange(logits_xV.shape[-1]) < top_k_x1) | (top_k_x1 == 0)
    probability = jax.nn.softmax(jnp.where(among, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The sum of all probabilities may round to more than 1, which must not cost the last tokens their place.
    survives = among & ((before < top_p_x1) | (top_p_x1 >= 1))
    return jnp.put_along_axis(jnp.zeros_like(survives), by_rank, survives, axis=-1, inplace=False)
