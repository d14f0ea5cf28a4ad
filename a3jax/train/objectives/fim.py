"""Filling in the middle: documents rearranged so that their middle comes last, then plain autoregression (arXiv 2207.14255).

    PSM   start  <prefix> prefix  <suffix> suffix  <middle> middle  end
    SPM   start  <prefix>  <suffix> suffix  <middle> prefix middle  end

Documents are rearranged as they stand in the window ("context level"), each by itself, between two places of its tokens that
are drawn evenly. A document keeps its number of tokens, so the three marks, and the end where the window had cut it off, take
the place of its last ones. All tokens count in the loss, marks too, as in the paper.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from a3jax.config import FimConfig, ModelConfig
from a3jax.ordering.windows import padding_last, per_segment, segment_bounds
from a3jax.train.objectives.any_order import AnyOrder
from a3jax.train.objectives.interface import Batch, Sums


@dataclass(frozen=True)
class FillInTheMiddle:
    """The loss of steps over rearranged documents."""

    in_order: AnyOrder
    """That of the documents as they then stand."""
    fim: FimConfig

    def sums(
        self, params: nnx.State, batch: Batch, keys_B: Array, teacher: nnx.State | None = None, step: Array | int = 0
    ) -> Sums:
        """See `Objective`."""
        tokens_BxL = rearranged(keys_B, batch["tokens"], batch["segments"], self.in_order.model, self.fim)
        return self.in_order.sums(params, batch | {"tokens": tokens_BxL}, keys_B, teacher, step)


@functools.partial(jax.jit, static_argnames=("model", "fim"))
def rearranged(keys_B: Array, tokens_BxL: Array, segment_BxL: Array, model: ModelConfig, fim: FimConfig) -> Array:
    """The tokens of a batch of windows, B x L, some of its documents rearranged; one key for each window."""
    return jax.vmap(functools.partial(_window, model=model, fim=fim))(keys_B, tokens_BxL, segment_BxL)


def _window(key: Array, token_L: Array, segment_L: Array, model: ModelConfig, fim: FimConfig) -> Array:
    (length,) = token_L.shape
    before, behind, middle = fim.tokens
    head, tail = int(model.document_start is not None), int(bool(model.end_tokens))
    start_L, end_L = segment_bounds(padding_last(segment_L))
    place_L = jnp.arange(length) - start_L - head
    text_L = end_L - start_L - head - 3 - tail
    """How many tokens of text remain."""

    which, how, one, other = (per_segment(k, start_L, length) for k in jax.random.split(key, 4))
    cuts = [jnp.floor(drawn_L * (text_L + 1)).astype(jnp.int32) for drawn_L in (one, other)]
    left_L, right_L = jnp.minimum(*cuts), jnp.maximum(*cuts)  # the middle is between them
    first_L = jnp.where(how < fim.spm, 0, left_L)
    """How much of the text comes before the suffix."""
    suffix_L = text_L - right_L
    mark_L = first_L + suffix_L + 2  # where the middle is announced
    source_L = jnp.where(place_L <= first_L, place_L - 1, right_L + place_L - first_L - 2)
    source_L = jnp.where(place_L > mark_L, first_L + place_L - mark_L - 1, source_L)

    result_L = token_L[jnp.clip(start_L + head + source_L, 0, length - 1)]
    for mark, where in ((before, place_L == 0), (behind, place_L == first_L + 1), (middle, place_L == mark_L)):
        result_L = jnp.where(where, mark, result_L)
    if tail:
        result_L = jnp.where(place_L == text_L + 3, model.end_tokens[0], result_L)
    changes_L = (which < fim.rate) & (text_L > 0) & (segment_L > 0) & (place_L >= 0)
    return jnp.where(changes_L, result_L, token_L)
