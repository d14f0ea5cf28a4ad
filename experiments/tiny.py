"""A few million parameters on bytes of Python source, in under a minute on two cores: for those who change the code.

a3jax prepare "$(python -c 'import json; print(json.__path__[0])')" data/tiny --tokenizer bytes --include '*.py' --held-out 0.2
a3jax train tiny
"""  # noqa: E501

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from a3jax.curriculum import paper


def experiment() -> Config:
    """Random weights, the paper's curriculum in 60 steps."""
    return Config(
        name="tiny",
        model=ModelConfig(
            family="llama",
            vocab=258,
            width=256,
            ff_width=704,
            layers=4,
            query_heads=4,
            kv_heads=2,
            head_width=64,
            context=1024,
            tied_head=True,
            start_token=256,
            end_tokens=(257,),
        ),
        data=DataConfig(path="data/tiny", length=256, batch=8),
        curriculum=paper(60),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup=10),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=30, save_every=30, eval_windows=16),
    )
