"""The base of the duel (experiments/duel.py): three million parameters, pretrained from left to right on Python source.

python experiments/duel_base.py tokenizer data/duel/tokenizer              # BPE of 4,096 on the packages to train on
for split in train dev test; do
    a3jax prepare $(python experiments/duel_base.py $split) data/duel/$split --tokenizer data/duel/tokenizer \\
        --include '*.py' --exclude '*/tests/*' '*/_vendor/*' '*/test_*' --deduplicate --held-out 0.002
done
a3jax train duel_base

The text is the source of large packages that the environment has (`requirements.txt` and `requirements-harness.txt`), split
by package, so that nothing of a test package is seen in training, nor chosen by. Vendored copies are left out.
"""

import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig

PACKAGES = {
    "train": (
        "transformers torch sympy jax scipy pandas matplotlib tensorflow_datasets pygments mypy numpy jaxlib huggingface_hub "
        "orbax datasets flax pydantic hypothesis mpmath accelerate rich"
    ),
    "dev": "fontTools lm_eval",
    "test": "networkx nltk optax",
}
VOCAB, LENGTH, BATCH = 4096, 512, 32
TOKENS = 100_000_000
MARKS = ("<|start|>", "<|end|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
"""The first five ids."""

MODEL = ModelConfig(
    family="llama",
    vocab=VOCAB,
    width=192,
    ff_width=512,
    layers=6,
    query_heads=6,
    kv_heads=2,
    head_width=32,
    context=1024,
    tied_head=True,
    start_token=0,
    end_tokens=(1,),
)


def experiment() -> Config:
    """A hundred million tokens, less than two epochs."""
    return Config(
        name="duel_base",
        model=MODEL,
        data=DataConfig(path="data/duel/train", length=LENGTH, batch=BATCH),
        curriculum=(Stage(tokens=TOKENS),),
        objective="ar",
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup=200),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=500, save_every=500, eval_windows=64),
    )


def folders(split: str) -> list[str]:
    """Where the packages of a split are; for training, the standard library too."""
    found = [] if split != "train" else [sysconfig.get_path("stdlib")]
    for name in PACKAGES[split].split():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{name} is not installed; install requirements.txt and requirements-harness.txt")
        found.append(next(iter(spec.submodule_search_locations)))
    return found


def train_tokenizer(folder: Path) -> None:
    """Byte-level BPE on every tenth file of the packages to train on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
    )

    def texts() -> Iterator[str]:
        files = sorted(file for place in folders("train") for file in Path(place).rglob("*.py"))
        for file in files[::10]:
            yield file.read_text(errors="replace")

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<|start|> $A", special_tokens=[("<|start|>", 0)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    if sys.argv[1] == "tokenizer":
        train_tokenizer(Path(sys.argv[2]))
    else:
        print(*folders(sys.argv[1]))
