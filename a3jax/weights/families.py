"""Model families: their `config.json`, both ways.

A family is a name, its `transformers` class, and the features by which it differs from Llama. Both dialects of
`config.json` are read: `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).
What a family has that our block lacks is refused by name.
"""

from dataclasses import dataclass
from typing import Any, Literal

from a3jax.config import ModelConfig, RopeScaling
from a3jax.errors import UserError
from a3jax.files.strict import nearest


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama; fields are those of `ModelConfig`."""

    name: str
    architecture: str
    qkv_bias: bool = False
    query_key_norm: Literal["none", "head", "full"] = "none"
    post_norm: bool = False
    theta: float = 10_000.0
    """RoPE base where `config.json` is silent."""


FAMILIES = (
    Family("llama", "LlamaForCausalLM"),
    Family("mistral", "MistralForCausalLM"),
    Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
    Family("qwen3", "Qwen3ForCausalLM", query_key_norm="head"),
    Family("olmo2", "Olmo2ForCausalLM", post_norm=True, query_key_norm="full"),
)

_MISSING = {
    "gemma": "scaled embeddings, a GELU gate and norms with weight 1 + w",
    "gemma2": "soft-capped logits, alternating local attention and four norms per layer",
    "gemma3": "alternating local attention with its own RoPE base and four norms per layer",
    "gemma3_text": "alternating local attention with its own RoPE base and four norms per layer",
    "mixtral": "a mixture of experts",
    "qwen2_moe": "a mixture of experts",
    "qwen3_moe": "a mixture of experts",
    "olmo": "a norm without weights",
    "phi3": "fused projections and partial rotary embedding",
    "smollm3": "layers without rotary embedding",
    "gpt2": "learned position embeddings and LayerNorm",
}


def family_of(name: str) -> Family:
    """The family called `name` (its `model_type`). Raises `UserError` for an unsupported one."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = [family.name for family in FAMILIES]
    why = f": it needs {_MISSING[name]}" if name in _MISSING else nearest(name, known)
    raise UserError(f"model_type '{name}' is not supported{why}; supported are {', '.join(known)}")


def from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from a parsed `config.json`; `where` names the file in errors."""
    family = family_of(str(config.get("model_type")))

    def number(name: str, default: Any = None) -> Any:
        value = default if config.get(name) is None else config[name]
        if value is None:
            raise UserError(f"{where}: field '{name}' is missing")
        if type(value) not in (int, float) or value <= 0:
            raise UserError(f"{where}: {name} is {value!r}; expected a positive number")
        return value

    def refuse(condition: bool, what: str) -> None:
        if condition:
            raise UserError(f"{where}: {what} is not supported")

    refuse("quantization_config" in config, "quantization_config (quantized weights; import the unquantized model)")
    refuse(config.get("hidden_act", "silu") != "silu", f"hidden_act '{config.get('hidden_act')}'")
    refuse(bool(config.get("mlp_bias")), "mlp_bias")
    refuse(bool(config.get("attention_bias")), "attention_bias (a bias on the output projection)")
    theta, scaling = _rope(config, where, family.theta)
    context, window = number("max_position_embeddings"), config.get("sliding_window")
    if window and config.get("use_sliding_window", family.name == "mistral"):
        context = min(context, window)  # within one window, sliding attention is full attention
    heads, width = number("num_attention_heads"), number("hidden_size")
    kv_heads, head_width = number("num_key_value_heads", heads), number("head_dim", width // heads)
    refuse(heads % kv_heads != 0, f"num_attention_heads {heads} that num_key_value_heads {kv_heads} does not divide")
    refuse(head_width % 2 != 0, f"odd head_dim {head_width}")
    end = config.get("eos_token_id")
    return ModelConfig(
        family=family.name,
        vocab=number("vocab_size"),
        width=width,
        ff_width=number("intermediate_size"),
        layers=number("num_hidden_layers"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        context=context,
        norm_eps=float(number("rms_norm_eps")),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        query_key_norm=family.query_key_norm,
        post_norm=family.post_norm,
        start_token=config.get("bos_token_id"),
        end_tokens=tuple(end) if isinstance(end, list) else () if end is None else (end,),
    )


def _rope(config: dict[str, Any], where: str, default_theta: float) -> tuple[float, RopeScaling | None]:
    """The RoPE base and its scaling, from either dialect."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise UserError(f"{where}: rope_type '{kind}' is not supported")
        if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
            raise UserError(f"{where}: partial_rotary_factor is not supported")
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or default_theta)
        if kind == "default":
            return theta, None
        return theta, RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: RoPE settings cannot be read: {type(error).__name__} {error}") from None


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of the family's own class, in the dialect that every version of transformers reads."""
    family = family_of(config.family)
    ends = list(config.end_tokens)
    result: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": config.start_token,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }
    if family.name in ("mistral", "qwen2", "qwen3"):
        result["sliding_window"] = None
    return result


def rope_scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` field of `config.json`."""
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
