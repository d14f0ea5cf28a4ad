"""The base of the duel (experiments/duel.py): three million parameters, pretrained from left to right on Python source.

python experiments/duel_base.py tokenizer data/duel/tokenizer              # BPE of 4,096 on the packages to train on
a3jax prepare $(python experiments/duel_base.py train) data/duel/train --tokenizer data/duel/tokenizer \\
    --include '*.py' --exclude 'site-packages/*' '*/tests/*' '*/_vendor/*' '*/test_*' --deduplicate --held-out 0.002
a3jax train duel_base

The text is the source of large packages that the environment has (`requirements.txt` and `requirements-harness.txt`), split
by package, so that nothing of a test package is seen in training, nor chosen by. Vendored copies are left out. Files of the
dev and test packages are read as they are, by `benchmarks/duel_figures.py`.

Where the packages are not those of the environment, A3JAX_PACKAGES names a folder that has them: `site/` with the packages,
and `stdlib/`.
"""

import fnmatch
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from a3jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig

PACKAGES = {
    "train": (
        "sympy jax scipy pandas matplotlib tensorflow_datasets pygments mypy numpy jaxlib huggingface_hub orbax datasets "
        "flax pydantic hypothesis mpmath accelerate rich torch transformers"
    ),
    "dev": "fontTools lm_eval",
    "test": "networkx nltk optax",
}
EXCLUDED = ("site-packages/*", "*/tests/*", "*/_vendor/*", "*/test_*")
"""Of every package, by the path inside of it; of the standard library, what is installed beside it."""
VOCAB, LENGTH, BATCH = 4096, 256, 64
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
    kv_heads=3,
    head_width=32,
    context=LENGTH,
    tied_head=True,
    start_token=0,
    end_tokens=(1,),
)


def experiment() -> Config:
    """A hundred million tokens, which is more than once through what there is."""
    return Config(
        name="duel_base",
        model=MODEL,
        data=DataConfig(path="data/duel/train", length=LENGTH, batch=BATCH),
        curriculum=(Stage(tokens=TOKENS),),
        objective="ar",
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup=100),
        train=TrainConfig(remat="none", eval_every=1000, save_every=1000, eval_windows=64),
    )


def folders(split: str) -> list[str]:
    """Where the packages of a split are; for training, the standard library too."""
    elsewhere = os.environ.get("A3JAX_PACKAGES")
    library = f"{elsewhere}/stdlib" if elsewhere else sysconfig.get_path("stdlib")
    found = [] if split != "train" else [library]
    for name in PACKAGES[split].split():
        if elsewhere:
            found.append(f"{elsewhere}/site/{name}")
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{name} is not installed; install requirements.txt and requirements-harness.txt")
        found.append(next(iter(spec.submodule_search_locations)))
    return found


def files(split: str) -> Iterator[tuple[str, Path]]:
    """The Python files of a split, each with its package and its path inside of it."""
    for folder in map(Path, folders(split)):
        for path in sorted(folder.rglob("*.py")):
            inside = str(path.relative_to(folder))
            if not any(fnmatch.fnmatch(inside, pattern) for pattern in EXCLUDED):
                yield f"{folder.name}/{inside}", path


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

    texts = (path.read_text(errors="replace") for _, path in list(files("train"))[::10])
    tokenizer.train_from_iterator(texts, trainer)
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
