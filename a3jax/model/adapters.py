"""Adapters (LoRA, Hu et al., arXiv 2106.09685): low-rank changes of a layer's weights, x W + (x A) B, in one stream or both.

In both they are another way of training all weights, and can be added into them. In the query stream alone they are what
makes a model any-order: the content stream stays that of the source model, bit for bit. So do, under successor seeding, the
predictions of every query that an AR model could ask (`Order.causal`): its row passes without them, in whatever order.
"""

import dataclasses

import numpy as np

from a3jax.config import ModelConfig

_ANY_ROW = {
    "query": ("NxDxA", "NxAxHxE"),
    "output": ("NxHxExA", "NxAxD"),
    "gate": ("NxDxA", "NxAxF"),
    "up": ("NxDxA", "NxAxF"),
    "down": ("NxFxA", "NxAxD"),
}
_CONTENT_ROW = {"key": ("NxDxA", "NxAxKxE"), "value": ("NxDxA", "NxAxKxE")}


def adapted(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The weights of a layer that have adapters, with the axes of their two `factors`."""
    if not config.adapter_rank:
        return {}
    return _ANY_ROW | (_CONTENT_ROW if config.adapter_stream == "both" else {})


def factors(name: str) -> tuple[str, str]:
    """The parameters that make the adapter of a weight: A, then B, which is zero at first."""
    return f"{name}_in", f"{name}_out"


def merged(weight: np.ndarray, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """One layer's weight with its adapter added in, in float32."""
    product = np.tensordot(inner.astype(np.float32), outer.astype(np.float32), 1)
    return weight.astype(np.float32) + product


def without_adapters(config: ModelConfig) -> ModelConfig:
    """The shape of the model with none."""
    return dataclasses.replace(config, adapter_rank=0)


def content_is_fixed(config: ModelConfig) -> bool:
    """Whether the content stream is the source model's for good, so that nothing is differentiated through it."""
    return config.adapter_rank > 0 and config.adapter_stream == "query"
