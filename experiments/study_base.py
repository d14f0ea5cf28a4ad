"""The small model of the study (docs/study.md): 0.8 million parameters, pretrained from left to right on Python source.

a3jax prepare "$(python -c 'import os; print(os.path.dirname(os.__file__))')" data/study --tokenizer bytes \\
    --held-out 0.02 --include '*.py' --exclude 'site-packages/*' '*test*' 'idlelib/*' 'lib2to3/*' 'encodings/*'
a3jax train study_base
"""

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig


def experiment() -> Config:
    """Six million bytes, two thirds of the corpus, each seen once."""
    return Config(
        name="study_base",
        model=ModelConfig(
            family="llama",
            vocab=258,
            width=128,
            ff_width=384,
            layers=4,
            query_heads=4,
            kv_heads=2,
            head_width=32,
            context=1024,
            tied_head=True,
            start_token=256,
            end_tokens=(257,),
        ),
        data=DataConfig(path="data/study", length=256, batch=16),
        curriculum=(Stage(1500, "in_order", 1),),
        optimizer=OptimizerConfig(peak_lr=4e-3, warmup=100),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=250, save_every=250, eval_windows=64),
    )
