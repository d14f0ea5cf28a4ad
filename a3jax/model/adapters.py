"""Adapters (LoRA, Hu et al., arXiv 2106.09685): low-rank changes of a layer's weights, x W + (x A) B, in one stream or both.

In both they are another way of training all weights, and can be added into them. In the query stream alone they are what
makes a model any-order: the content stream is computed by the source model's weights alone, bit for bit. Unless seeds
are learned so is every query that sees the tokens before its own and no others (`Order.causal`): its row passes without them.

From left to right, one token at a time, such a model therefore predicts what the source model does. In other orders it need
not, not even for causal queries: where groups hold several tokens, the content of an earlier group has seen ahead within that
group, as the source model's never does, and the causal query that begins the next group reads keys made of it. Where content
sees no further than its own slot (`ModelConfig.content`), they do in every order from left to right.
"""

import dataclasses

import numpy as np

from a3jax.config import ModelConfig
from a3jax.model.parameters import Declared, declarations


def adapted(config: ModelConfig) -> tuple[str, ...]:
    """The names of a layer's weights that have adapters."""
    return tuple(path.removeprefix("blocks.") for path, it in declarations(config).items() if has_adapter(config, it))


def has_adapter(config: ModelConfig, weight: Declared) -> bool:
    """Whether a parameter has one: matrices do, in the query stream alone those of query rows, which make no keys (K)."""
    if weight.kind != "matrix" or not config.adapter_rank:
        return False
    return config.adapter_stream == "both" or "K" not in weight.axes


def factor_axes(weight: Declared) -> tuple[str, str]:
    """The axes of both `factors` of a matrix: "NxD->HxE" becomes "NxD->A" and "NxA->HxE"."""
    layers, *rest = weight.axes
    inputs, outputs = ("x".join(part) for part in (rest[: weight.inputs], rest[weight.inputs :]))
    return f"{layers}x{inputs}->A", f"{layers}xA->{outputs}"


def factors(name: str) -> tuple[str, str]:
    """The parameters that make the adapter of a weight: A, then B, which is zero at first."""
    return f"{name}_in", f"{name}_out"


def merged(weight: np.ndarray, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """One layer's weight with its adapter added in, in float32."""
    product = np.tensordot(inner.astype(np.float32), outer.astype(np.float32), 1)
    return weight.astype(np.float32) + product


def source_of(config: ModelConfig) -> ModelConfig:
    """The shape of the autoregressive model that an adapted one was made of: without adapters, and what seeds have beyond."""
    seeding = "successor" if config.seeding == "two_sided" else config.seeding
    return dataclasses.replace(config, adapter_rank=0, seeding=seeding)


def content_is_fixed(config: ModelConfig) -> bool:
    """Whether the content stream is the source model's for good, so that nothing is differentiated through it."""
    return config.adapter_rank > 0 and config.adapter_stream == "query"
