"""Small random models of every family, made and saved by transformers, and what they become here."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # both are read when transformers is imported
os.environ["HF_MODULES_CACHE"] = (MODULES := tempfile.TemporaryDirectory(prefix="a3jax-twin-")).name

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from small_models import CASES

from a3jax.checkpoint import Checkpoint, find
from a3jax.data.tokenizer import byte_codec
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Callable[..., Path]:
    """The folder of a random model of one of CASES, with unit gain and non-trivial norms and biases."""
    made: dict[tuple, Path] = {}

    def make(case: str, dtype: str = "float32") -> Path:
        if (case, dtype) in made:
            return made[case, dtype]
        name, changes = CASES[case]
        sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        tokens = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
        config = getattr(transformers, f"{name}Config")(**(sizes | heads | tokens | changes))
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                noise = torch.randn(tensor.shape, generator=draw)
                gain = 0.7 if "embed" in key else tensor.shape[-1] ** -0.5
                tensor.copy_(noise * gain if tensor.ndim == 2 else noise * 0.5 if "bias" in key else 1 + 0.3 * noise)
        folder = tmp_path_factory.mktemp(f"{case}-{dtype}")
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        for file, content in byte_codec().files.items():
            (folder / file).write_bytes(content)
        made[case, dtype] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def imported(pretrained, tmp_path_factory) -> Callable[..., Checkpoint]:
    """The same model after `import_model`."""
    made: dict[tuple, Checkpoint] = {}

    def make(case: str, dtype: str = "float32") -> Checkpoint:
        if (case, dtype) not in made:
            out = tmp_path_factory.mktemp("imported") / case
            import_model(open_source(pretrained(case, dtype)), out)
            made[case, dtype] = find(out)
        return made[case, dtype]

    return make
