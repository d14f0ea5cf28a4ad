"""What the tests of weights compare: families, random inputs, and logits of our model and of a folder in PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from small_tokenizers import byte_level

from a3jax.checkpoint.folder import Checkpoint, load_params
from a3jax.model.two_stream import Compute, TwoStream
from a3jax.ordering import Order, arrange, gather

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 5.0]}
LINEAR, ORIGINAL = {"rope_type": "linear", "factor": 2.0}, {"original_max_position_embeddings": 64}
GEMMA = {"head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 20}
GPT_OSS = {"head_dim": 12, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5}
BIASES = ("attention_bias", "mlp_bias")
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.0}
CASES = {
    "llama": ("Llama", {"head_dim": 12}),
    "llama3": ("Llama", {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "mistral": ("Mistral", {"head_dim": 12, "sliding_window": None}),
    "mistral_local": ("Mistral", {"sliding_window": 16, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {}),
    "olmo": ("Olmo", {"clip_qkv": 0.8}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 4, "sliding_window": 16, "rope_scaling": YARN | ORIGINAL}),
    "gemma": ("Gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}),
    "gemma3_text": ("Gemma3", GEMMA | {"sliding_window_pattern": 3}),
    "granite": ("Granite", {**dict.fromkeys(BIASES, True), **MULTIPLIERS}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.75, "sliding_window": 16, "rope_parameters": LONG, **ORIGINAL}),
    "mixtral": ("Mixtral", {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "norm_topk_prob": True},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 1.0}),
    "gpt_oss": ("GptOss", GPT_OSS | {"rope_scaling": YARN | ORIGINAL | {"truncate": False}}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "attention_bias": True, "rope_scaling": LINEAR}),
}

LLAMA_CPP = {
    "llama_biased": ("Llama", dict.fromkeys(BIASES, True) | {"head_dim": 12, "rope_scaling": LINEAR}),
    "llama3_released": ("Llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}}),
    "qwen3_yarn": ("Qwen3", {"head_dim": 12, "rope_scaling": YARN | ORIGINAL | {"attention_factor": 0.7}}),
    "gemma2_released": ("Gemma2", GEMMA | {"query_pre_attn_scalar": 12}),
    "gemma3_released": (
        "Gemma3",
        GEMMA
        | {"query_pre_attn_scalar": 12, "final_logit_softcapping": 20.0, "num_hidden_layers": 7, "rope_scaling": LINEAR},
    ),
    "phi3_released": (
        "Phi3",
        {
            "partial_rotary_factor": 0.75,
            "sliding_window": None,
            "rope_parameters": LONG,
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 1024,
        },
    ),
    "gpt_oss_released": (  # YaRN's edges lie beyond all waves, where it is the same to round them, as llama.cpp does
        "GptOss",
        GPT_OSS
        | {"swiglu_limit": 7.0, "intermediate_size": 64, "rope_theta": 2.0}
        | {"rope_scaling": YARN | ORIGINAL | {"truncate": False}},
    ),
    "smollm3_released": ("SmolLM3", {"num_hidden_layers": 5, "rope_scaling": YARN | ORIGINAL}),
    "olmoe_released": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
}
"""Cases that keep to what llama.cpp fixes of their families, as published models do."""
STRETCHED = ("llama", "mistral", "qwen2", "olmo", "olmo2", "gemma", "gemma2_released", "granite", "mixtral", "qwen3_moe")
LLAMA_CPP |= {
    f"{case}_yarn": (name, changes | {"rope_scaling": YARN | ORIGINAL})
    for case, (name, changes) in (CASES | LLAMA_CPP).items()
    if case in (*STRETCHED, "olmoe_released")
}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)

WINDOWED = ("qwen2", "qwen3")
"""Families that have local layers on request."""


def _odd(case: str) -> tuple[str, dict]:
    """One key-value head, heads unlike D/H, a head tied where it was not, a window far below the text, two end tokens."""
    name, changes = CASES[case]
    tied = changes.get("tie_word_embeddings", name.startswith(("Gemma", "SmolLM3")))
    odd = {"num_key_value_heads": 1, "tie_word_embeddings": not tied, "eos_token_id": [257, 299]}
    if case not in ("phi3", "olmoe"):  # which have no other heads than D/H in transformers
        odd["head_dim"] = 10
    if changes.get("sliding_window"):
        odd["sliding_window"] = 5
    elif case in WINDOWED:
        odd |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    return name, changes | odd


ODD = {f"{case}_odd": _odd(case) for case in CASES if case not in ("llama3", "mistral")}
"""Every family in shapes that are not its own."""

PLAIN = ("llama", "llama3", "mistral", "qwen2", "qwen3", "olmo2")


def few(*kept: str, changes: tuple = (), plain: tuple = PLAIN) -> list:
    """Parameters of a test of all cases: those beyond `plain` ones that are not `kept` are left to the long tests."""
    known = (*plain, *kept)
    return [pytest.param(case, *changes, marks=[] if case in known else [pytest.mark.long]) for case in CASES | ODD]


def tokens(length: int = 48) -> np.ndarray:
    """Two rows of random ids."""
    return np.random.default_rng(1).integers(0, 300, (2, length))


def random_groups(given: int, size: int, length: int = 48) -> np.ndarray:
    """Groups of `size` in random order behind `given` tokens, B x T."""
    rng = np.random.default_rng(size)
    return np.stack([np.concatenate([np.arange(given), given + rng.permutation(length - given) // size]) for _ in range(2)])


def query_logits(checkpoint: Checkpoint, tokens: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What our model's query stream says, in token order."""
    config = checkpoint.config
    graph, params = nnx.graphdef(nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0)))), load_params(checkpoint)
    group_BxL = jnp.asarray(groups, jnp.int32)
    given_BxL, segment_BxL = jnp.zeros_like(group_BxL, bool), jnp.ones_like(group_BxL)
    order = jax.vmap(lambda *row: arrange(*row, config.seeding))(group_BxL, given_BxL, segment_BxL)

    @jax.jit
    def logits(params: nnx.State, order: Order) -> jax.Array:
        network = nnx.merge(graph, params)
        hidden = network.query_hidden(jnp.asarray(tokens), order, Compute())
        return network.logits(gather(hidden, jnp.argsort(order.token_index, 1)))

    return np.asarray(logits(params, order))


def torch_logits(folder: Path, tokens: np.ndarray, **how) -> np.ndarray:
    """What transformers says of a folder."""
    model = load(folder)
    with torch.no_grad():
        return model(torch.from_numpy(tokens), **{k: torch.from_numpy(v) for k, v in how.items()}).logits.numpy()


def load(folder: Path):
    """A folder's model in float32, with all tensors found and none left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def save_chat_model(folder: Path) -> None:
    """A small random Llama as transformers saves it, with a tokenizer that has a chat template."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 480, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **tokens)).save_pretrained(folder)
    for name, content in byte_level().items():
        (folder / name).write_bytes(content)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
