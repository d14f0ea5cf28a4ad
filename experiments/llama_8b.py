"""Llama-3.1-8B becomes any-order, as in arXiv 2601.13228: its curriculum and optimizer, over two billion tokens.

a3jax plan llama_8b --topology v5p:4x4x4     # before any weights or data are there

a3jax import ~/models/Llama-3.1-8B models/llama-8b
a3jax prepare ~/fineweb data/fineweb-llama3 --tokenizer models/llama-8b
a3jax train llama_8b
"""

from a3jax.config import AdaptConfig, Config, DataConfig
from a3jax.config.shapes import LLAMA_3_1_8B
from a3jax.curriculum import paper


def experiment() -> Config:
    """256 Ki tokens a step; the shape is that of the source, so that a plan needs nothing but this file."""
    return Config(
        name="llama-8b",
        source="models/llama-8b",
        model=LLAMA_3_1_8B,
        data=DataConfig(path="data/fineweb-llama3", length=4096, batch=64),
        curriculum=paper(7630),
        adapt=AdaptConfig(rank=0),
    )
