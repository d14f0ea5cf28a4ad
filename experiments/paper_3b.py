"""Llama-3.2-3B becomes any-order as the authors' script for arXiv 2601.13228 does it, where that is known.

docs/reproduce.md tells what is known, and what differs all the same; ours is experiments/llama_3b.py.

a3jax plan paper_3b --topology v5e:4x4     # before any weights or data are there

a3jax import ~/models/Llama-3.2-3B models/llama-3b
a3jax prepare ~/fineweb data/fineweb-llama3-open --tokenizer models/llama-3b --end none
a3jax train paper_3b
"""

from a3jax.config import AdaptConfig, Config, DataConfig, OptimizerConfig
from a3jax.config.shapes import LLAMA_3_2_3B
from a3jax.curriculum import paper


def experiment() -> Config:
    """Five stages of 800 steps of 128 documents, each cut at 4,096 tokens, with an optimizer of its own for every stage."""
    return Config(
        name="paper-3b",
        source="models/llama-3b",
        model=LLAMA_3_2_3B,
        seeding="learned",
        data=DataConfig(path="data/fineweb-llama3-open", length=4096, batch=128, packing="truncate"),
        curriculum=paper(4000),
        optimizer=OptimizerConfig(peak_lr=2e-5, schedule="linear", final_lr=0.0, b2=0.999, per_stage=True),
        adapt=AdaptConfig(rank=0, query_seed="normal"),
    )
