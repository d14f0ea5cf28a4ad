"""How much arithmetic a step needs, counted by hand, and how much the machine can do: their ratio is the MFU.

Useful FLOPs only: rematerialized work is not counted, nor are the last layer's content rows, which are not computed.
"""

import jax
from flax import nnx

from a3jax.config import ModelConfig, Stage
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.adapters import adapted, content_is_fixed, factors, without_adapters
from a3jax.model.parameters import shapes

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
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 FLOP/s of one device by the start of its `device_kind`, from the vendors' data sheets."""


def peak(device: jax.Device) -> float | None:
    """FLOP/s of a device, or None where it is not known (CPUs)."""
    known = [name for name in PEAK_BF16 if device.device_kind.startswith(name)]
    return PEAK_BF16[max(known, key=len)] if known else None


def per_window(model: ModelConfig, stage: Stage, length: int, distilled: bool = False) -> float:
    """FLOPs of one window of `length` tokens, forward and backward; of a distilled model, its source's too.

    A matrix product with an a x b weight costs 2ab per row, and as much again backward for each of its factors that has a
    gradient: the rows, unless they are those of a fixed content stream, and the weight, unless only adapters are trained.
    `attention_forward` counts the rest. Parameters that are frozen by name count as if they were not.
    """
    single, fixed = one_stream_is_enough(model, stage.is_ar), content_is_fixed(model)
    sizes = _sizes(model)
    layers = {name: _layers(model, name.removesuffix("_in").removesuffix("_out"), single) for name in _products(model)}
    passes = 2 if model.adapter_rank else 3
    head = model.width * model.vocab * (1 if single and fixed else passes)
    weights = head
    for name, (content, query) in layers.items():
        if name.endswith(("_in", "_out")):
            weights += 3 * sizes[name] * (query if fixed else content + query)
        else:
            weights += sizes[name] * ((1 if fixed else passes) * content + passes * query)
    own = length * 2 * weights + attention(model, stage, length)
    return own + _of_source(model, length) if distilled else own


def _of_source(model: ModelConfig, length: int) -> float:
    """FLOPs of one stream of the source model, forward only, and of its logits."""
    weights = model.width * model.vocab + model.layers * sum(
        _sizes(model)[name] for name in _products(without_adapters(model))
    )
    return length * 2 * weights + source_attention(model, length)


def source_attention(model: ModelConfig, length: int) -> float:
    """FLOPs of the attention of one window in the source model that a distilled one learns from."""
    return _attention_of_layers(model, model.layers, length)


def attention(model: ModelConfig, stage: Stage, length: int) -> float:
    """FLOPs of the attention of one window, forward and backward.

    Backward there are four products to the two forward; where the content stream is fixed, two, and those of queries only.
    """
    backward = 2.0 if not content_is_fixed(model) else 0.0 if one_stream_is_enough(model, stage.is_ar) else 0.5
    return (1 + backward) * attention_forward(model, stage, length)


def attention_forward(model: ModelConfig, stage: Stage, length: int) -> float:
    """FLOPs of the attention of one window of one document, forward only.

    It costs 4HE per row and visible key: half of all keys on average, as every slot sees those before it.
    """
    return _attention_of_layers(model, sum(_layers(model, "query", one_stream_is_enough(model, stage.is_ar))), length)


def _attention_of_layers(model: ModelConfig, layers: int, length: int) -> float:
    return layers * length * 4 * model.query_heads * model.head_width * length / 2


def _sizes(model: ModelConfig) -> dict[str, int]:
    """Floats of a layer's parameters."""
    return {name: leaf.size // model.layers for name, leaf in nnx.to_pure_dict(shapes(model))["blocks"].items()}


def _products(model: ModelConfig) -> list[str]:
    """The parameters of a layer that rows are multiplied with."""
    weights = ["query", "key", "value", "output", "gate", "up", "down"]
    return weights + [factor for name in adapted(model) for factor in factors(name)]


def _layers(model: ModelConfig, name: str, single: bool) -> tuple[int, int]:
    """In how many layers content rows pass through a weight, and in how many query rows do.

    Those of the last layer's content would feed nothing but its keys and values; a fixed content stream runs by itself,
    through all layers.
    """
    if name in ("key", "value"):
        return model.layers, 0
    whole = single or content_is_fixed(model)
    return model.layers - (0 if whole else 1), 0 if single else model.layers
