"""How much arithmetic a step needs, counted by hand, and how much the machine can do: their ratio is the MFU.

Useful FLOPs only: those of rows and keys that a prediction comes of (`a3jax.train.counts`), once each. Of experts a row is
counted with those that it goes to, in local attention with the keys of its window. Not counted are
padding, the queries of given tokens, keys that are computed and hidden, what is computed again for the backward pass, and
the last layer's content rows, which are not computed.
"""

import math

import jax

from a3jax.config import ModelConfig, Stage
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.adapters import content_is_fixed, factors, has_adapter, source_of
from a3jax.model.parameters import Declared, Kind, declarations, size_of
from a3jax.train.counts import Counts, full_window

PRODUCTS: frozenset[Kind] = frozenset(("matrix", "router", "expert"))
"""Kinds of parameters that rows are multiplied with, and that are there without adapters."""
PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # JAX shows each of a chip's two cores as a device
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 FLOP/s of one device by the start of its `device_kind`, from the vendors' data sheets."""


def peak(device: jax.Device) -> float | None:
    """FLOP/s of a device, or None where it is not known (CPUs)."""
    known = [name for name in PEAK_BF16 if device.device_kind.startswith(name)]
    return PEAK_BF16[max(known, key=len)] if known else None


def per_window(
    model: ModelConfig, stage: Stage, length: int, distilled: bool = False, mask_block: int | None = None
) -> float:
    """FLOPs of a window that one document of `length` tokens fills, forward and backward: what plans count with."""
    return useful(model, stage, full_window(length, mask_block, model.local_window), distilled)


def useful(model: ModelConfig, stage: Stage, counts: Counts[float], distilled: bool = False) -> float:
    """FLOPs of the windows that were counted, forward and backward; of a distilled model, its source's too.

    A matrix product with an a x b weight costs 2ab per row, and as much again backward for each of its factors that has a
    gradient: the rows, unless they are those of a fixed content stream, and the weight, unless only adapters are trained.
    `attention_forward` counts the rest. Parameters that are frozen by name count as if they were not.
    """
    single, fixed = one_stream_is_enough(model, stage.is_ar), content_is_fixed(model)
    passes = 2 if model.adapter_rank else 3
    weights = model.width * model.vocab * counts.predicted * (1 if single and fixed else passes)
    for path, weight in declarations(model).items():
        if weight.kind not in PRODUCTS:
            continue
        layers = _layers(model, weight, single)
        content, query = layers[0] * counts.content, layers[1] * counts.predicted
        weights += _size(model, path) * ((1 if fixed else passes) * content + passes * query)
        if has_adapter(model, weight):
            factor_sizes = sum(_size(model, f"blocks.{name}") for name in factors(path.removeprefix("blocks.")))
            weights += factor_sizes * 3 * (query if fixed else content + query)
    if model.seeding == "two_sided" and not single:  # what x_{t+1} adds; with adapters, embeddings have no gradient
        weights += model.width**2 * counts.predicted * passes
    own = 2 * weights + attention(model, stage, counts)
    return float(own + _of_source(model, counts) if distilled else own)


def of_experts(model: ModelConfig, stage: Stage, counts: Counts[float], recomputed: bool) -> float:
    """FLOPs of the products with experts, forward and backward, and once more forward where that is computed again."""
    single, fixed, total = one_stream_is_enough(model, stage.is_ar), content_is_fixed(model), 0.0
    passes = (2 if model.adapter_rank else 3) + recomputed
    for path, weight in declarations(model).items():
        if weight.kind == "expert":
            layers = _layers(model, weight, single)
            content, query = layers[0] * counts.content, layers[1] * counts.predicted
            total += 2 * _size(model, path) * ((1 if fixed else passes) * content + passes * query)
    return float(total)


def _of_source(model: ModelConfig, counts: Counts[float]) -> float:
    """FLOPs of one stream of the source model, forward only, and of its logits of predicted tokens."""
    source = source_of(model)
    sizes = sum(_size(source, path) for path, weight in declarations(source).items() if weight.kind in PRODUCTS)
    rows = model.layers * sizes * counts.content + model.width * model.vocab * counts.predicted
    return float(2 * rows + source_attention(model, counts))


def source_attention(model: ModelConfig, counts: Counts[float]) -> float:
    """FLOPs of the attention in the source model that a distilled one learns from."""
    return _per_key(model) * _keys(model, model.layers, counts.causal_keys, counts.local_causal_keys)


def attention(model: ModelConfig, stage: Stage, counts: Counts[float]) -> float:
    """FLOPs of the attention, forward and backward.

    Backward there are four products to the two forward; where the content stream is fixed, two, and those of queries only.
    """
    content, query = _attention(model, stage, counts)
    return content + 2 * query if content_is_fixed(model) else 3 * (content + query)


def attention_forward(model: ModelConfig, stage: Stage, counts: Counts[float]) -> float:
    """FLOPs of the attention, forward only: 4HE per row and visible key."""
    return sum(_attention(model, stage, counts))


def _attention(model: ModelConfig, stage: Stage, counts: Counts[float]) -> tuple[float, float]:
    """That of content rows, and that of query rows."""
    single = one_stream_is_enough(model, stage.is_ar)
    content, query = _rows_in_layers(model, single)
    seen = (
        _keys(model, content, counts.content_keys, counts.local_content_keys),
        _keys(model, query, counts.query_keys, counts.local_query_keys),
    )
    return _per_key(model) * seen[0], _per_key(model) * seen[1]


def _keys(model: ModelConfig, layers: int, full: float, local: float) -> float:
    """Keys in the first `layers` layers, of which some are local."""
    near = sum(layer < layers for layer in model.local_layers)
    return (layers - near) * full + near * local


def _per_key(model: ModelConfig) -> int:
    return 4 * model.query_heads * model.head_width


def _size(model: ModelConfig, path: str) -> int:
    """Floats of a layer's parameter that a row is multiplied with: of experts, those of the row's."""
    it, sizes = declarations(model)[path], size_of(model)
    if it.kind == "expert" and model.experts:
        sizes["X"] = model.experts.active
    return math.prod(sizes[letter] for letter in it.axes[1:])


def _layers(model: ModelConfig, weight: Declared, single: bool) -> tuple[int, int]:
    """In how many layers content rows pass through a weight, and in how many query rows do; none make keys or values (K)."""
    return (model.layers, 0) if "K" in weight.axes else _rows_in_layers(model, single)


def _rows_in_layers(model: ModelConfig, single: bool) -> tuple[int, int]:
    """In how many layers content rows attend, and in how many query rows do.

    Those of the last layer's content would feed nothing but its keys and values; a fixed content stream runs by itself,
    through all layers.
    """
    whole = single or content_is_fixed(model)
    return model.layers - (0 if whole else 1), 0 if single else model.layers
