"""Choosing tokens from logits: temperature, top-k and top-p (Holtzman et al., arXiv 1904.09751), or greedily.

The choice may be sharpened and filtered, its reported log-probability never is: it is the token's under the model's own
distribution, so that log-probabilities add up to the likelihood of the text whatever chose it. All settings are traced
values; changing them compiles nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.errors import UserError


class Sampling(NamedTuple):
    """How a token is chosen. Scalars, or scalar arrays inside a compiled function."""

    temperature: float | Array = 0.0
    """0 takes the most probable token."""
    top_k: int | Array = 0
    """Only the k most probable tokens; 0 for all."""
    top_p: float | Array = 1.0
    """Only the most probable tokens that together have this probability, after temperature and top-k."""


def checked(temperature: float, top_k: int, top_p: float) -> Sampling:
    """A `Sampling` of these values; raises `UserError` for one that means nothing."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be 0 (the most probable token) or more")
    if not 0 <= top_k < 2**31:
        raise UserError(f"top-k is {top_k}; it must be 0 (every token) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top-p is {top_p}; it must be above 0 and at most 1 (every token)")
    return Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))


def sample(keys_BxS: Array, logits_BxSxV: Array, sampling: Sampling, allowed_V: Array) -> tuple[Array, Array]:
    """A token for every row, B x S int32, and its log-probability in nats, B x S float32.

    Rows draw with their own key, and only from tokens that are `allowed`. The log-probability is that of the model's own
    distribution: temperature 1, nothing filtered.
    """
    logits_BxSxV = logits_BxSxV.astype(jnp.float32)
    candidates = jnp.where(allowed_V, logits_BxSxV, -jnp.inf)

    def draw() -> Array:
        # The largest becomes 0, so that no temperature, however low, overflows.
        sharpened = (candidates - candidates.max(axis=-1, keepdims=True)) / sampling.temperature
        filtering = (sampling.top_k > 0) | (sampling.top_p < 1)
        filtered = jax.lax.cond(
            filtering, lambda: jnp.where(kept(sharpened, sampling), sharpened, -jnp.inf), lambda: sharpened
        )
        gumbel = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, allowed_V.shape, jnp.float32)))
        return jnp.argmax(filtered + gumbel(keys_BxS), axis=-1)

    token_BxS = jax.lax.cond(sampling.temperature > 0, draw, lambda: jnp.argmax(candidates, axis=-1)).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits_BxSxV, token_BxS[..., None], axis=-1)[..., 0]
    return token_BxS, chosen - jax.nn.logsumexp(logits_BxSxV, axis=-1)


def kept(logits_xV: Array, sampling: Sampling) -> Array:
    """Which tokens survive top-k, then top-p among those, ... x V bool. Of equal logits the lower id goes first.

    top-p keeps the fewest tokens whose probabilities reach it, at least one.
    """
    by_rank = jnp.argsort(-logits_xV, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits_xV, by_rank, axis=-1)
    among = (jnp.arange(logits_xV.shape[-1]) < sampling.top_k) | (sampling.top_k == 0)
    probability = jax.nn.softmax(jnp.where(among, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The sum of all probabilities may round to more than 1, which must not cost the last tokens their place.
    survives = among & ((before < sampling.top_p) | (sampling.top_p >= 1))
    return jnp.put_along_axis(jnp.zeros_like(survives), by_rank, survives, axis=-1, inplace=False)
