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

    A matrix product with an a x b weight costs 2ab per row. Attention costs 4HE per visible key: half of all on average,
    as every slot sees those before it.
    """
    one = single_stream(stage, model)
    matrices = 2 * model.width * model.head_width * (model.query_heads + model.kv_heads) + 3 * model.width * model.ff_width
    keys_values = 2 * model.width * model.head_width * model.kv_heads
    queries_only = matrices - keys_values
    attention = 4 * model.query_heads * model.head_width * length / 2
    if one:
        per_token = model.layers * (2 * matrices + attention)
    else:
        content = (model.layers - 1) * (2 * matrices + attention) + 2 * keys_values
        query = model.layers * (2 * queries_only + attention)
        per_token = content + query
    return 3 * length * (per_token + 2 * model.width * model.vocab)
