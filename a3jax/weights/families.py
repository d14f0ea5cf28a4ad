"""Model families: their `config.json`, both ways.

A family is a name, its `transformers` class, the features by which it differs from Llama, and what `transformers`
takes where `config.json` is silent. Both dialects of `config.json` are read: `rope_theta` and `rope_scaling` (transformers
4) and `rope_parameters` (transformers 5). What a family has that our block lacks is refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from a3jax.config import Experts, ModelConfig, RopeScaling
from a3jax.errors import UserError, check_count, check_positive, shown
from a3jax.files.strict import misspelt
from a3jax.weights.generation import end_tokens, special_tokens, start_token

ROPE_BASE = 10_000.0
"""Of every family but those that say another, where no file says one."""
_ONLY_IF_SAID = 2**31 - 1
"""The window of a family that has none where `config.json` is silent."""


@dataclass(frozen=True)
class Mixture:
    """How a family's `config.json` tells of experts."""

    silent: Experts
    """What it takes where the file is silent."""
    count: str = "num_experts"
    width: str = "intermediate_size"
    """The field of the feed-forward width of an expert."""
    silent_width: int | None = None


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama; the first fields are those of `ModelConfig`."""

    name: str
    architecture: str
    qkv_bias: bool = False
    query_key_norm: Literal["none", "head", "full"] = "none"
    post_norm: bool = False
    kv_heads: int | None = None
    """Where `config.json` is silent; None: as many as query heads."""
    head_width: int | None = None
    """Where `config.json` is silent; None: the width over the number of query heads."""
    window: int | None = None
    """Of sliding attention where `config.json` is silent; None: attention of this family never slides."""
    window_on_request: bool = False
    """Whether attention slides only where `use_sliding_window` is true."""
    rope_base: float = ROPE_BASE
    """Where no file says one."""
    mixture: Mixture | None = None
    """Where its feed-forward is one of experts."""
    start_token: int | None = None
    """Where no file says one."""
    end_token: int | None = None
    """Where no file says one."""


_QWEN: dict[str, Any] = {"kv_heads": 32, "window": 4096, "window_on_request": True}
FAMILIES = (
    Family("llama", "LlamaForCausalLM", start_token=1, end_token=2),
    Family("mistral", "MistralForCausalLM", kv_heads=8, window=4096, start_token=1, end_token=2),
    Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True, **_QWEN),
    Family("qwen3", "Qwen3ForCausalLM", query_key_norm="head", head_width=128, **_QWEN),
    Family("olmo2", "Olmo2ForCausalLM", post_norm=True, query_key_norm="full", end_token=50279),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        kv_heads=8,
        window=_ONLY_IF_SAID,
        rope_base=1e6,
        mixture=Mixture(Experts(8, 2, True, 0.001), count="num_local_experts"),
        start_token=1,
        end_token=2,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        query_key_norm="head",
        mixture=Mixture(Experts(128, 8, False, 0.001), width="moe_intermediate_size", silent_width=768),
        **_QWEN | {"kv_heads": 4},
    ),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        query_key_norm="full",
        mixture=Mixture(Experts(64, 8, False, 0.01)),
        end_token=50279,
    ),
)

_MISSING = {
    "gemma": "scaled embeddings, a GELU gate and norms with weight 1 + w",
    "gemma2": "soft-capped logits, alternating local attention and four norms per layer",
    "gemma3": "alternating local attention with its own RoPE base and four norms per layer",
    "gemma3_text": "alternating local attention with its own RoPE base and four norms per layer",
    "qwen2_moe": "an expert that every token goes through beside those chosen",
    "olmo": "a norm without weights",
    "phi3": "fused projections and partial rotary embedding",
    "smollm3": "layers without rotary embedding",
    "gpt2": "learned position embeddings and LayerNorm",
    "llava": "images beside the text",
    "mllama": "images beside the text",
    "molmo2": "images beside the text",
}

_LLAMA_FIELDS = frozenset(
    """_name_or_path architectures attention_bias attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype
    eos_token_id head_dim hidden_act hidden_size id2label initializer_range intermediate_size is_encoder_decoder label2id
    max_position_embeddings mlp_bias model_type num_attention_heads num_hidden_layers num_key_value_heads output_attentions
    output_hidden_states pad_token_id pretraining_tp problem_type return_dict rms_norm_eps rope_parameters rope_scaling
    rope_theta tie_word_embeddings torch_dtype transformers_version use_cache vocab_size""".split()  # noqa: SIM905, read as prose
)
"""What `transformers` writes into the `config.json` of a Llama."""


def family_of(name: object, settings: Mapping[str, Any] | None = None) -> Family:
    """The family called `name` (its `model_type`).

    Raises `UserError` for an unsupported one. It says what is missing here: in the words of a table, else by the names of the
    fields that `settings`, its `config.json`, sets beyond a Llama's.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = [family.name for family in FAMILIES]
    why = ""
    if isinstance(name, str):
        why = f": it needs {_MISSING[name]}" if name in _MISSING else misspelt(name, known)
    raise UserError(
        f"model_type {shown(name)} is not supported{why or _beyond(settings or {})}; supported are {', '.join(known)}"
    )


def _beyond(settings: Mapping[str, Any]) -> str:
    """What a `config.json` sets that a Llama's does not know."""
    names = [name for name, value in settings.items() if value and name not in _LLAMA_FIELDS]
    names = [name for name in names if re.fullmatch(r"[a-z0-9_]{1,40}", name)]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f": beyond a Llama's fields, its config.json sets {', '.join(names[:6])}{more}" if names else ""


def from_hf(config: Mapping[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from a parsed `config.json`, with what transformers takes where it is silent.

    `where` names the file in errors. Raises `UserError` for a family or a feature that is not supported, and for a number,
    a token or a truth value that is none.
    """
    family = family_of(config.get("model_type"), config)

    def count(name: str, default: int | None = None) -> int:
        value = default if config.get(name) is None else config[name]
        return check_count(f"{where}: {name}", needed(name) if value is None else value)

    def needed(name: str) -> Any:
        if config.get(name) is None:
            raise UserError(f"{where}: field '{name}' is missing")
        return config[name]

    def flag(name: str) -> bool:
        return _truth(f"{where}: {name}", False if config.get(name) is None else config[name])

    def refuse(condition: bool, what: str) -> None:
        if condition:
            raise UserError(f"{where}: {what} is not supported")

    refuse(config.get("transformers_weights") is not None, "transformers_weights (weights in a file of another name)")
    refuse(config.get("hidden_act", "silu") != "silu", f"hidden_act {shown(config.get('hidden_act'))}")
    refuse(flag("mlp_bias"), "mlp_bias")
    refuse(flag("attention_bias"), "attention_bias (a bias on the output projection)")
    heads, width, vocab = count("num_attention_heads"), count("hidden_size"), count("vocab_size")
    silent = family.kv_heads if "num_key_value_heads" not in config else None
    kv_heads, head_width = (
        count("num_key_value_heads", silent or heads),
        count("head_dim", family.head_width or width // heads),
    )
    refuse(heads % kv_heads != 0, f"num_attention_heads {heads} that num_key_value_heads {kv_heads} does not divide")
    refuse(head_width % 2 != 0, f"odd head_dim {head_width}")
    context = count("max_position_embeddings")
    if (family.window is not None and not family.window_on_request) or flag("use_sliding_window"):
        window = config.get("sliding_window", family.window)
        if window is not None:  # within one window, sliding attention is full attention
            context = min(context, check_count(f"{where}: sliding_window", window))
    elif family.window_on_request:
        kinds = [] if config.get("layer_types") is None else config["layer_types"]
        full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        refuse(not full, f"layer_types {shown(kinds)} without use_sliding_window")
    theta, scaling = _rope(config, family.rope_base, where)
    mixture = family.mixture
    return ModelConfig(
        family=family.name,
        vocab=vocab,
        width=width,
        ff_width=count("intermediate_size") if mixture is None else count(mixture.width, mixture.silent_width),
        layers=count("num_hidden_layers"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        context=context,
        norm_eps=check_positive(f"{where}: rms_norm_eps", needed("rms_norm_eps")),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=flag("tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        query_key_norm=family.query_key_norm,
        post_norm=family.post_norm,
        experts=None if mixture is None else _experts(config, mixture, where),
        start_token=start_token(config, where, vocab, family.start_token),
        end_tokens=end_tokens(config, where, vocab, family.end_token),
    )


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} is {shown(value)}; it must be true or false")
    return value


def _experts(config: Mapping[str, Any], mixture: Mixture, where: str) -> Experts:
    """The experts of every layer. Raises `UserError` where some layers have none."""
    silent = mixture.silent
    for name, usual in {"mlp_only_layers": [], "decoder_sparse_step": 1, "clip_qkv": None}.items():
        if config.get(name) not in (None, usual):
            raise UserError(f"{where}: {name} {shown(config[name])} is not supported")
    said = {"num_local_experts", "num_experts"} & set(config)
    count = config[mixture.count if mixture.count in said else said.pop()] if said else silent.count
    try:
        return Experts(
            check_count(mixture.count, count),
            check_count("num_experts_per_tok", config.get("num_experts_per_tok", silent.active)),
            _truth("norm_topk_prob", config.get("norm_topk_prob", silent.normalized)),
            config.get("router_aux_loss_coef", silent.balance),
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _rope(config: Mapping[str, Any], base: float, where: str) -> tuple[float, RopeScaling | None]:
    """The RoPE base and its scaling, from either dialect.

    Where both speak, transformers takes `rope_scaling` for all of it, and the base that stands beside it.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name), dict | None):
            raise UserError(f"{where}: {name} is {shown(config[name])}; it must be an object")
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope: dict[str, Any] = config.get(name) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"{where}: {name} by layer type is not supported")
    if kind not in ("default", "llama3"):
        raise UserError(f"{where}: rope_type {shown(kind)} is not supported")
    if any(given.get("partial_rotary_factor", 1.0) not in (None, 1.0) for given in (rope, config)):
        raise UserError(f"{where}: partial_rotary_factor is not supported")
    theta = check_positive(f"{where}: rope_theta", rope.get("rope_theta", config.get("rope_theta", base)))
    if kind == "default":
        return theta, None
    said = "original_max_position_embeddings"
    lengths = [given[said] for given in (rope, config) if given.get(said) is not None]
    if lengths[1:] and lengths[0] != lengths[1]:
        raise UserError(f"{where}: {said} is {shown(lengths[1])}, and {shown(lengths[0])} in {name}; make them one")
    factors = ("factor", "low_freq_factor", "high_freq_factor")
    for factor in factors:
        if factor not in rope:
            raise UserError(f"{where}: RoPE settings cannot be read: {name} has no '{factor}'")
    try:
        scaling = {factor: check_positive(factor, rope[factor]) for factor in factors}
        length = check_count(said, lengths[0] if lengths else config["max_position_embeddings"])
        return theta, RopeScaling(**scaling, original_context=length)
    except UserError as error:
        raise UserError(f"{where}: {name}: {error}") from None


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of the family's own class, in the dialect that every version of transformers reads."""
    family = family_of(config.family)
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
    } | special_tokens(config)
    if family.window is not None:
        result["sliding_window"] = None
    if family.mixture and (experts := config.experts):
        result |= {
            family.mixture.count: experts.count,
            family.mixture.width: config.ff_width,
            "num_experts_per_tok": experts.active,
            "norm_topk_prob": experts.normalized,
            "router_aux_loss_coef": experts.balance,
        }
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
