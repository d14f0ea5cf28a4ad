"""How much arithmetic a step needs, counted by hand, and how much the machine can do: their ratio is the MFU.

Useful FLOPs only: rematerialized work is not counted, nor are the last layer's content rows, which are not computed.
"""

import jax

from a3jax.config import ModelConfig, Stage
from a3jax.train.step import single_stream

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


def per_window(model: ModelConfig, stage: Stage, length: int) -> float:
    """FLOPs of one window of `length` tokens, forward and backward (twice the forward).

    A matrix product with an a x b weight costs 2ab per row; `attention_forward` counts the rest.
    """
    matrices = 2 * model.width * model.head_width * (model.query_heads + model.kv_heads) + 3 * model.width * model.ff_width
    keys_values = 2 * model.width * model.head_width * model.kv_heads
    if single_stream(stage, model):
        weights = model.layers * matrices
    else:
        content = (model.layers - 1) * matrices + keys_values
        query = model.layers * (matrices - keys_values)
        weights = content + query
    weights += model.width * model.vocab
    return 3 * (length * 2 * weights + attention_forward(model, stage, length))


def attention_forward(model: ModelConfig, stage: Stage, length: int) -> float:
    """FLOPs of the attention of one window of one document, forward only.

    It costs 4HE per row and visible key: half of all keys on average, as every slot sees those before it.
    """
    layers = model.layers if single_stream(stage, model) else 2 * model.layers - 1
    return layers * length * 4 * model.query_heads * model.head_width * length / 2
