"""How GGUF lays out a model: architectures, names and the order of rows, each in one table that is read both ways.

Names and layouts are those of llama.cpp's gguf-py and its converter from Hugging Face.
"""

from dataclasses import dataclass, replace

import numpy as np

from a3jax.config import Llama3Scaling, ModelConfig, Rope
from a3jax.errors import UserError
from a3jax.model.rope import frequencies


@dataclass(frozen=True)
class Architecture:
    """What GGUF calls one or more of our families."""

    name: str
    families: tuple[str, ...]
    """Those written as it; a file of it is read as the first, which computes the same."""
    pairs: bool = False
    """Whether rows of queries and keys are stored in rotary pairs side by side, where Hugging Face has halves."""
    normalized: bool | None = None
    """Of experts, what llama.cpp does with the weights of those that are chosen (`Experts.normalized`); None: it has none."""


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), pairs=True),
    Architecture("qwen2", ("qwen2",)),
    Architecture("qwen3", ("qwen3",)),
    Architecture("llama", ("mixtral",), pairs=True, normalized=True),
    Architecture("qwen3moe", ("qwen3_moe",), normalized=True),
    Architecture("olmoe", ("olmoe",), normalized=False),
)


def architecture_of(family: str) -> Architecture:
    """What GGUF calls a family of ours. Raises `UserError` if it is not in the table."""
    for architecture in ARCHITECTURES:
        if family in architecture.families:
            return architecture
    known = ", ".join(family for architecture in ARCHITECTURES for family in architecture.families)
    raise UserError(f"a model of the family '{family}' cannot be written as GGUF; possible are {known}")


def check_writable(config: ModelConfig) -> None:
    """Raise `UserError` for what a model has beyond what the architecture of its family computes in llama.cpp."""
    architecture = architecture_of(config.family)
    beyond = {
        "other weights of experts": config.experts is not None and config.experts.normalized != architecture.normalized,
        "biases beyond those of its family": config.output_bias or config.mlp_bias,
        "queries, keys and values that are cut off": config.qkv_limit is not None,
        "a rotary embedding of parts of heads": config.rotary_width is not None,
        "RoPE scaling other than Llama 3's": not isinstance(config.rope_scaling, Llama3Scaling | None),
    }
    for what, has in beyond.items():
        if has:
            raise UserError(f"a model with {what} cannot be written as GGUF; export its folder instead")


FIELDS = {
    "context": "context_length",
    "width": "embedding_length",
    "ff_width": "feed_forward_length",
    "layers": "block_count",
    "query_heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_width": "attention.key_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab": "vocab_size",
}
"""Field of `ModelConfig` -> metadata, behind the architecture's name."""
EXPERTS = {"count": "expert_count", "active": "expert_used_count"}
"""The same of `Experts`."""
EXPERT_WIDTH = "expert_feed_forward_length"
"""Metadata that says the width of an expert in place of `feed_forward_length`."""
HEAD_WIDTHS = ("attention.value_length", "rope.dimension_count")
"""Metadata that must be equal to the head width."""

_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
ROPE_DIVISORS = "rope_freqs.weight"
_PAIRED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")


def to_hugging_face(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; an unknown one keeps its own, and the importer reports it."""
    return _renamed(name, "blk.", "model.layers.", _MODEL, _LAYER)


def to_gguf(name: str) -> str:
    """The inverse of `to_hugging_face`."""
    model, layer = ({theirs: ours for ours, theirs in table.items()} for table in (_MODEL, _LAYER))
    return _renamed(name, "model.layers.", "blk.", model, layer)


def _renamed(name: str, prefix: str, new_prefix: str, model: dict[str, str], layer: dict[str, str]) -> str:
    number, _, part = name.removeprefix(prefix).partition(".")
    if name.startswith(prefix) and part in layer:
        return f"{new_prefix}{number}.{layer[part]}"
    return model.get(name, name)


def from_pairs(name: str, tensor: np.ndarray, architecture: Architecture, head_width: int) -> np.ndarray:
    """A tensor by its Hugging Face name, with rows as Hugging Face has them."""
    if not (architecture.pairs and name.endswith(_PAIRED)):
        return tensor
    return tensor.reshape(-1, head_width // 2, 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def to_pairs(name: str, tensor: np.ndarray, architecture: Architecture, head_width: int) -> np.ndarray:
    """The inverse of `from_pairs`."""
    if not (architecture.pairs and name.endswith(_PAIRED)):
        return tensor
    return tensor.reshape(-1, 2, head_width // 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def rope_divisors(config: ModelConfig) -> np.ndarray:
    """By what Llama 3's scaling divides every frequency, E/2; GGUF stores these and not the scaling."""
    return frequencies(config, Rope(config.rope_theta)) / frequencies(config, Rope(config.rope_theta, config.rope_scaling))


def rope_scaling(config: ModelConfig, divisors: np.ndarray) -> Llama3Scaling | None:
    """The scaling that has these divisors, if it is that of a Llama 3 release; else None."""
    if divisors.shape != (config.head_width // 2,) or not (np.isfinite(divisors) & (divisors > 0)).all():
        return None
    # The longest wave is divided by the whole factor.
    scaling = Llama3Scaling(float(divisors.max()), 1.0, 4.0, 8192)
    expected = rope_divisors(replace(config, rope_scaling=scaling))
    return scaling if np.allclose(divisors, expected, rtol=1e-3) else None
