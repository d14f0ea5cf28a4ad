"""Mixtral-8x7B becomes any-order by adapters of its attention: experts and routers stay the source's.

a3jax plan mixtral_8x7b --topology v5p:4x4x4     # before any weights or data are there

a3jax import ~/models/Mixtral-8x7B-v0.1 models/mixtral
a3jax prepare ~/fineweb data/fineweb-mixtral --tokenizer models/mixtral
a3jax train mixtral_8x7b
"""

from a3jax.config import Config, DataConfig, MeshConfig
from a3jax.config.shapes import MIXTRAL_8X7B
from a3jax.curriculum import direct


def experiment() -> Config:
    """256 Ki tokens a step, over 64 devices: one expert on each eight of them."""
    return Config(
        name="mixtral-8x7b",
        source="models/mixtral",
        model=MIXTRAL_8X7B,
        mesh=MeshConfig(expert=8),
        data=DataConfig(path="data/fineweb-mixtral", length=4096, batch=64),
        curriculum=direct(2000),
    )
