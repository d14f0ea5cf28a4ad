"""Llama-3.2-1B becomes any-order, as in arXiv 2601.13228: its curriculum and optimizer, over two billion tokens.

a3jax plan llama_1b --topology v5e:4x4     # before any weights or data are there

a3jax import ~/models/Llama-3.2-1B models/llama-1b
a3jax prepare ~/fineweb data/fineweb-llama3 --tokenizer models/llama-1b
a3jax train llama_1b
"""

from a3jax.config import AdaptConfig, Config, DataConfig
from a3jax.config.shapes import LLAMA_3_2_1B
from a3jax.curriculum import paper


def experiment() -> Config:
    """256 Ki tokens a step; the shape is that of the source, so that a plan needs nothing but this file."""
    return Config(
        name="llama-1b",
        source="models/llama-1b",
        model=LLAMA_3_2_1B,
        data=DataConfig(path="data/fineweb-llama3", length=2048, batch=128),
        curriculum=paper(7630),
        adapt=AdaptConfig(rank=0),
    )
