"""Shapes of published models by name, for plans and for training before any weights are there."""

from a3jax.config.model import ModelConfig, RopeScaling

LLAMA_3_2_1B = ModelConfig(
    family="llama",
    vocab=128256,
    width=2048,
    ff_width=8192,
    layers=16,
    query_heads=32,
    kv_heads=8,
    head_width=64,
    context=131072,
    tied_head=True,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
    start_token=128000,
    end_tokens=(128001,),
)
LLAMA_3_2_3B = ModelConfig(
    family="llama",
    vocab=128256,
    width=3072,
    ff_width=8192,
    layers=28,
    query_heads=24,
    kv_heads=8,
    head_width=128,
    context=131072,
    tied_head=True,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
    start_token=128000,
    end_tokens=(128001,),
)
LLAMA_3_1_8B = ModelConfig(
    family="llama",
    vocab=128256,
    width=4096,
    ff_width=14336,
    layers=32,
    query_heads=32,
    kv_heads=8,
    head_width=128,
    context=131072,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
    start_token=128000,
    end_tokens=(128001,),
)
