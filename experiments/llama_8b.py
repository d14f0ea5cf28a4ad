"""Llama-3.1-8B becomes any-order, as in arXiv 2601.13228: its curriculum and optimizer, over two billion tokens.

a3jax plan llama_8b --topology v5p:4x4x4     # before any weights or data are there

a3jax import ~/models/Llama-3.1-8B models/llama-8b
a3jax prepare ~/fineweb data/fineweb-llama3 --tokenizer models/llama-8b
a3jax train llama_8b
"""

from a3jax.config import AdaptConfig, Config, DataConfig, ModelConfig, RopeScaling
from a3jax.curriculum.presets import paper


def experiment() -> Config:
    """256 Ki tokens a step; the shape is that of the source, so that a plan needs nothing but this file."""
    return Config(
        name="llama-8b",
        source="models/llama-8b",
        model=ModelConfig(
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
        ),
        data=DataConfig(path="data/fineweb-llama3", length=4096, batch=64),
        curriculum=paper(7630),
        adapt=AdaptConfig(rank=0),
    )
