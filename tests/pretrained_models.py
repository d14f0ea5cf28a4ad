"""Small random models of every family, made and saved by transformers, and what they become here."""

import json
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # both are read when transformers is imported
os.environ["HF_MODULES_CACHE"] = (MODULES := tempfile.TemporaryDirectory(prefix="a3jax-twin-")).name

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from small_models import CASES, LLAMA_CPP, ODD

from a3jax.checkpoint.folder import Checkpoint, find
from a3jax.data.tokenizer import byte_codec
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Callable[..., Path]:
    """The folder of a random model of one of the cases, with unit gain and non-trivial norms and biases."""
    made: dict[tuple, Path] = {}

    def make(case: str, dtype: str = "float32") -> Path:
        if (case, dtype) in made:
            return made[case, dtype]
        name, changes = (CASES | LLAMA_CPP | ODD)[case]
        sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        tokens = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
        kind = getattr(transformers, f"{name}ForCausalLM")
        model = kind(kind.config_class(**(sizes | heads | tokens | changes)))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                noise = torch.randn(tensor.shape, generator=draw)
                gain = 0.7 if "embed" in key else tensor.shape[-1] ** -0.5
                tensor.copy_(noise * gain if tensor.ndim > 1 else noise * 0.5 if "bias" in key else 1 + 0.3 * noise)
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


@pytest.fixture(scope="session")
def large(pretrained, tmp_path_factory) -> Path:
    """A Llama of 270 MB in 16 layers, its largest tensor 4 MB, a file a layer."""
    D, F, layers = 512, 2048, 16
    raw = json.loads((pretrained("llama") / "config.json").read_text())
    raw |= {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": layers, "num_attention_heads": 8}
    raw |= {"num_key_value_heads": 8, "head_dim": 64}
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(raw))
    for file, content in byte_codec().files.items():
        (folder / file).write_bytes(content)
    layer = {f"self_attn.{letter}_proj": (D, D) for letter in "qkvo"}
    layer |= {"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
    layer |= {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
    shards = [{f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()} for i in range(layers)]
    rest = {"model.embed_tokens.weight": (300, D), "model.norm.weight": (D,), "lm_head.weight": (300, D)}
    draw = np.random.default_rng(0)
    for i, shard in enumerate([*shards, rest]):
        tensors = {name: draw.standard_normal(shape, np.float32) for name, shape in shard.items()}
        save_file(tensors, folder / f"model-{i}.safetensors")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 250e6
    return folder
