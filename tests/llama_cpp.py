"""llama.cpp itself, where the package xllamacpp is installed."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers


class Written(NamedTuple):
    """A token that llama.cpp has written."""

    token: int
    log_prob: float


def continued(model: Path, prompts: list[list[int]], tokens: int, context: int) -> list[list[Written]]:
    """What llama.cpp writes greedily behind each prompt, weights and cache in float32. Skips a test where it is not there.

    A text that ends does so with its end token.
    """
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not there; pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = context, 1, 1
    params.warmup, params.verbosity = False, 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, found = xllamacpp.Server(params), []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        answer = server.handle_completions(asked)
        if "choices" not in answer:
            pytest.fail(f"llama.cpp: {json.dumps(answer)[:200]}")
        said = (answer["choices"][0]["logprobs"] or {"content": []})["content"]
        found.append([Written(one["id"], one["logprob"]) for one in said])
    return found


def plain_tokenizer(vocab: int = 259) -> dict[str, bytes]:
    """A byte-level tokenizer whose every token is whole ASCII: llama.cpp reports no token that ends within a character."""
    words = ["\u010a", "\u0120", *(f"w{i}" for i in range(2, 256)), "<|start|>", "<|end|>", "\u010a\u0120"][:vocab]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(words)}, [("\u010a", "\u0120")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|start|>", "<|end|>"])
    return {"tokenizer.json": made.to_str().encode()}
