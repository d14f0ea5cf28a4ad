"""Shapes of published models by name, for plans and for training before any weights are there."""

from a3jax.config.model import Experts, ModelConfig
from a3jax.config.rope import Llama3Scaling


def _llama_3(
    width: int, ff_width: int, layers: int, query_heads: int, head_width: int, rope_factor: float, tied_head: bool
) -> ModelConfig:
    """What the models of Llama 3.1 and 3.2 have in common, with what sets one apart."""
    return ModelConfig(
        family="llama",
        vocab=128256,
        width=width,
        ff_width=ff_width,
        layers=layers,
        query_heads=query_heads,
        kv_heads=8,
        head_width=head_width,
        context=131072,
        tied_head=tied_head,
        rope_theta=500_000.0,
        rope_scaling=Llama3Scaling(rope_factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
        start_token=128000,
        end_tokens=(128001,),
    )


LLAMA_3_2_1B = _llama_3(2048, 8192, 16, 32, head_width=64, rope_factor=32.0, tied_head=True)
LLAMA_3_2_3B = _llama_3(3072, 8192, 28, 24, head_width=128, rope_factor=32.0, tied_head=True)
LLAMA_3_1_8B = _llama_3(4096, 14336, 32, 32, head_width=128, rope_factor=8.0, tied_head=False)

MIXTRAL_8X7B = ModelConfig(
    family="mixtral",
    vocab=32000,
    width=4096,
    ff_width=14336,
    layers=32,
    query_heads=32,
    kv_heads=8,
    head_width=128,
    context=32768,
    rope_theta=1e6,
    experts=Experts(8, 2, balance=0.02),
    start_token=1,
    end_tokens=(2,),
)
