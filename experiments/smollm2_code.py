"""SmolLM2-135M becomes any-order on Python source: what `adapters/smollm2-135m-code` was made by, in minutes on a GPU.

a3jax import .cache/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2
a3jax prepare .venv/lib/python3.11/site-packages data/packages --tokenizer models/smollm2 --deduplicate --held-out 0.002 \\
    --include '*.py' --exclude 'networkx/*' 'nltk/*' 'optax/*' 'fontTools/*' 'lm_eval/*' 'pip/*' \\
    '*/tests/*' '*/_vendor/*' '*/test_*'
a3jax train smollm2_code

The text is the source of the packages of a development install, some 72 million tokens, without those that models are
measured on (experiments/duel_base.py) and without the standard library. Windows draw what users ask for: blanks of unknown
length and of a known one with text on both sides, several blanks, and drafts from left to right.
"""

from a3jax.config import AdaptConfig, Config, DataConfig, GuardConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.curriculum import Part

STEPS = 1500
"""Of 32,768 tokens."""
ORDERS = (
    Part(4.0, "open", 1, given=0.7),  # a blank whose end the model finds
    Part(2.0, "infill", 1, given=0.7),  # one of known length, a token at a time in any order
    Part(1.0, "infill", 4, given=0.5, sizes="geometric"),  # and several at a time
    Part(2.0, "random", 4, given=0.9, sizes="geometric"),  # blanks anywhere, any subset
    Part(1.5, "in_order", 8, sizes="uniform"),  # drafts of speculative decoding
)


def experiment() -> Config:
    """Adapters of rank 32, which are 16 MB in bfloat16."""
    return Config(
        name="smollm2_code",
        source="models/smollm2",
        data=DataConfig(path="data/packages", length=512, batch=64),
        curriculum=(Stage(STEPS, mixture=ORDERS),),
        adapt=AdaptConfig(rank=32),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup=100, decay=0.3, final_lr=0.05),
        train=TrainConfig(remat="none", loss_chunk=4096, eval_every=500, save_every=500, eval_windows=64),
        guard=GuardConfig("skip"),
    )
