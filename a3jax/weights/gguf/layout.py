"""How GGUF lays out a model's tensors: names, and numbers that stand otherwise, each in one table that is read both ways.

Names and layouts are those of llama.cpp's gguf-py and its converter from Hugging Face.
"""

from collections.abc import Mapping

import numpy as np

from a3jax.weights.families import family_of
from a3jax.weights.gguf.architectures import Architecture

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
    "attn_sinks.weight": "self_attn.sinks",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_output.bias": "self_attn.o_proj.bias",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate.bias": "mlp.gate_proj.bias",
    "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias",
}
_POST_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
"""Of a family with norms behind attention and MLP."""
_OWN = {"gpt-oss": {"post_attention_norm.weight": "post_attention_layernorm.weight"}}
"""Of one architecture."""
_FUSED = {"attn_qkv.weight": "self_attn.qkv_proj.weight", "ffn_up.weight": "mlp.gate_up_proj.weight"}
"""Of a family that stores matrices as one."""
_PAIRED = tuple(f"self_attn.{letter}_proj.{kind}" for letter in "qk" for kind in ("weight", "bias"))


def to_hugging_face(name: str, architecture: Architecture) -> str:
    """The Hugging Face name of a GGUF tensor; an unknown one keeps its own, and the importer reports it."""
    return _renamed(name, "blk.", "model.layers.", _MODEL, _layer(architecture))


def to_gguf(name: str, architecture: Architecture) -> str:
    """The inverse of `to_hugging_face`."""
    model, layer = ({theirs: ours for ours, theirs in table.items()} for table in (_MODEL, _layer(architecture)))
    return _renamed(name, "model.layers.", "blk.", model, layer)


def _layer(architecture: Architecture) -> dict[str, str]:
    """The names of a layer's tensors; where two are one in Hugging Face, the last is written."""
    post_norm = family_of(architecture.families[0]).features.get("post_norm")
    other = (_POST_NORMS if post_norm else {}) | (_FUSED if architecture.fused else {})
    return _LAYER | other | _OWN.get(architecture.name, {})


def _renamed(name: str, prefix: str, new_prefix: str, model: Mapping[str, str], layer: Mapping[str, str]) -> str:
    number, _, part = name.removeprefix(prefix).partition(".")
    if name.startswith(prefix) and part in layer:
        return f"{new_prefix}{number}.{layer[part]}"
    return model.get(name, name)


def from_stored(name: str, tensor: np.ndarray, architecture: Architecture, head_width: int) -> np.ndarray:
    """A tensor by its Hugging Face name, as Hugging Face has it: heads in halves, and norms' weights beside 1."""
    if architecture.pairs and name.endswith(_PAIRED):
        return tensor.reshape(-1, head_width // 2, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor - np.float32(1) if _beside_1(name, architecture) else tensor


def to_stored(name: str, tensor: np.ndarray, architecture: Architecture, head_width: int) -> np.ndarray:
    """The inverse of `from_stored`, but for how 1 + a weight is rounded."""
    if architecture.pairs and name.endswith(_PAIRED):
        return tensor.reshape(-1, 2, head_width // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor + np.float32(1) if _beside_1(name, architecture) else tensor


def _beside_1(name: str, architecture: Architecture) -> bool:
    """Whether a tensor is the weight of a norm that multiplies with 1 + weight, which GGUF stores as the sum."""
    return name.endswith("norm.weight") and family_of(architecture.families[0]).features.get("norm") == "rms_offset"
