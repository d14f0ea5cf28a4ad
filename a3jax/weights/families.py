"""Model families: what each is, in one row.

A family is a name, its `transformers` class, the mechanisms by which it differs from Llama, and what `transformers` takes
where `config.json` is silent. `a3jax.weights.configuration` reads and writes a `config.json` by these rows. What a family has
that our block lacks is refused by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from a3jax.config import Experts
from a3jax.errors import UserError, shown
from a3jax.files.strict import misspelt

ROPE_BASE = 10_000.0
"""Where no file says one, and no row."""
ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"


class Number(NamedTuple):
    """A positive number that `config.json` and `ModelConfig` both have."""

    theirs: str
    ours: str
    default: float | None = None
    """Theirs, where the file is silent; None: there is none, and the file may say so."""
    to_ours: Callable[[float], float] = float
    to_theirs: Callable[[float], float] = float


@dataclass(frozen=True)
class Mixture:
    """How a family tells of experts, of which all its layers are, in `config.json` and in tensors' names."""

    silent: Experts
    """What it takes where the file is silent."""
    count: str = "num_experts"
    """The field that says how many there are."""
    width: str = "intermediate_size"
    """The field of the feed-forward width of one."""
    silent_width: int | None = None
    module: str = "mlp"
    """What it calls the feed-forward of a layer."""
    router: str = "gate"
    """What it calls the router in there."""
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """What it calls those of an expert: the gate, what it multiplies, and the way back."""

    @property
    def names(self) -> dict[str, str]:
        """Our parameters of a layer of experts, and what the family calls them; "{x}" is the expert."""
        theirs = (self.router, *(f"experts.{{x}}.{name}" for name in self.matrices))
        return {ours: f"{self.module}.{name}" for ours, name in zip(("router", "gate", "up", "down"), theirs)}


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama."""

    name: str
    architecture: str
    features: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` that all models of the family have."""
    numbers: tuple[Number, ...] = ()
    """Fields of both configurations that only this family has."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors of a layer that it stores as one (`a3jax.weights.fused`); "{x}" is the expert."""
    biases: tuple[str, ...] = ()
    """The fields by which a model may have biases."""
    attention_bias: bool = False
    """Where `config.json` is silent."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `config.json` of which we compute this value alone, and what they are where it is silent."""
    mixture: Mixture | None = None
    """None: its feed-forward is dense."""
    scaled_embedding: bool = False
    """Embeddings are multiplied with the root of the width."""
    activation: str = "silu"
    """Of the MLP's gate, where `config.json` is silent."""
    norm_eps: float | None = None
    """None: `config.json` says it; else it never does."""
    kv_heads: int | None = None
    """Where `config.json` is silent; None: as many as query heads."""
    head_width: int | None = None
    """Where `config.json` is silent; None: the width over the number of query heads."""
    tied_head: bool = False
    """Where `config.json` is silent."""
    slides: bool = False
    """Whether attention slides in some layers, or may."""
    window: int | None = None
    """Of sliding attention where `config.json` is silent; None: attention does not slide then."""
    window_on_request: bool = False
    """Whether attention slides only where `use_sliding_window` is true."""
    full_layers: tuple[int, int] | None = None
    """The first that does not slide, and every how many others one does not, where `config.json` has no `layer_types`; None:
    all slide."""
    rope_base: float = ROPE_BASE
    """Where no file says one."""
    rope: Mapping[str, Any] = field(default_factory=dict)
    """`rope_parameters` where `config.json` is silent."""
    local_rope_base: float | None = None
    """Of sliding layers, which have a rotary embedding of their own; None: they have that of the others."""
    original_context: int | None = None
    """Of scaled rotary embeddings, where `config.json` is silent; None: the context."""
    unrotated_every: int | None = None
    """Every so many layers one has no rotary embedding, where `config.json` is silent; None: all have it."""
    start_token: int | None = None
    """Where no file says one."""
    end_token: int | None = None
    """Where no file says one."""


_SLIDES: dict[str, Any] = {"slides": True, "window": 4096}
_QWEN: dict[str, Any] = {"kv_heads": 32, "window_on_request": True, **_SLIDES}
_OLMO: dict[str, Any] = {"biases": (ATTENTION_BIAS,), "end_token": 50279}
_CLIP = Number("clip_qkv", "qkv_limit")
_OLMO_2 = {"pre_norm": False, "post_norm": True, "query_key_norm": "full"}
_GEMMA: dict[str, Any] = {"biases": (ATTENTION_BIAS,), "scaled_embedding": True, "activation": "gelu_pytorch_tanh"}
_GEMMA |= {"head_width": 256, "tied_head": True, "start_token": 2, "end_token": 1}
_GEMMA_2 = {"norm": "rms_offset", "post_norm": True}
_PER_QUERY = Number("query_pre_attn_scalar", "attention_scale", 256, lambda x: x**-0.5, lambda scale: round(scale**-2))
_ATTENTION_CAP = Number("attn_logit_softcapping", "attention_cap", 50)
_LOGIT_CAP = Number("final_logit_softcapping", "logit_cap", 30)
_GRANITE = (
    Number("embedding_multiplier", "embedding_scale", 1),
    Number("residual_multiplier", "residual_scale", 1),
    Number("attention_multiplier", "attention_scale", 1),
    Number("logits_scaling", "logit_divisor", 1),
)
_PHI_3 = {
    "self_attn.qkv_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_GPT_OSS = {
    "mlp.experts.gate_up_proj": ("mlp.experts.{x}.gate_proj.weight", "mlp.experts.{x}.up_proj.weight"),
    "mlp.experts.gate_up_proj_bias": ("mlp.experts.{x}.gate_proj.bias", "mlp.experts.{x}.up_proj.bias"),
    "mlp.experts.down_proj": ("mlp.experts.{x}.down_proj.weight",),
    "mlp.experts.down_proj_bias": ("mlp.experts.{x}.down_proj.bias",),
}
_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32, "truncate": False, "original_max_position_embeddings": 4096}
FAMILIES = (
    Family("llama", "LlamaForCausalLM", biases=(ATTENTION_BIAS, MLP_BIAS), start_token=1, end_token=2),
    Family("mistral", "MistralForCausalLM", kv_heads=8, start_token=1, end_token=2, **_SLIDES),
    Family("qwen2", "Qwen2ForCausalLM", {"qkv_bias": True}, **_QWEN),
    Family("qwen3", "Qwen3ForCausalLM", {"query_key_norm": "head"}, head_width=128, biases=(ATTENTION_BIAS,), **_QWEN),
    Family("olmo", "OlmoForCausalLM", {"norm": "layer"}, (_CLIP,), norm_eps=1e-5, **_OLMO),
    Family("olmo2", "Olmo2ForCausalLM", _OLMO_2, **_OLMO),
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        _OLMO_2,
        full_layers=(3, 4),
        local_rope_base=5e5,
        rope_base=5e5,
        **_SLIDES,
        **_OLMO,
    ),
    Family("gemma", "GemmaForCausalLM", {"norm": "rms_offset"}, kv_heads=16, **_GEMMA),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA_2,
        (_PER_QUERY, _ATTENTION_CAP, _LOGIT_CAP),
        full_layers=(1, 2),
        kv_heads=4,
        **_SLIDES,
        **_GEMMA,
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA_2 | {"query_key_norm": "head"},
        (_PER_QUERY, _LOGIT_CAP._replace(default=None)),
        full_layers=(5, 6),
        local_rope_base=1e4,
        rope_base=1e6,
        kv_heads=4,
        **_SLIDES,
        **_GEMMA,
    ),
    Family("granite", "GraniteForCausalLM", {}, _GRANITE, biases=(ATTENTION_BIAS, MLP_BIAS), start_token=1, end_token=2),
    Family("phi3", "Phi3ForCausalLM", fused=_PHI_3, slides=True, original_context=4096, start_token=1, end_token=32000),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        unrotated_every=4,
        rope_base=2e6,
        kv_heads=4,
        slides=True,
        window_on_request=True,
        tied_head=True,
        biases=(ATTENTION_BIAS, MLP_BIAS),
        start_token=128000,
        end_token=128001,
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        mixture=Mixture(
            Experts(8, 2, True, 0.001), count="num_local_experts", module="block_sparse_moe", matrices=("w1", "w3", "w2")
        ),
        kv_heads=8,
        slides=True,
        rope_base=1e6,
        start_token=1,
        end_token=2,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {"query_key_norm": "head"},
        mixture=Mixture(Experts(128, 8, False, 0.001), width="moe_intermediate_size", silent_width=768),
        biases=(ATTENTION_BIAS,),
        **_QWEN | {"kv_heads": 4},
    ),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        {"query_key_norm": "full"},
        (_CLIP,),
        mixture=Mixture(Experts(64, 8, False, 0.01)),
        **_OLMO,
    ),
    Family(
        "gpt_oss",
        "GptOssForCausalLM",
        {"attention_sinks": True, "activation": "gelu_sigmoid"},
        (Number("swiglu_limit", "gate_limit", 7),),
        _GPT_OSS,
        biases=(ATTENTION_BIAS,),
        attention_bias=True,
        fixed={"swiglu_alpha": 1.702},
        mixture=Mixture(Experts(128, 4, True, 0.001, biases=True), count="num_local_experts", router="router"),
        kv_heads=8,
        head_width=64,
        slides=True,
        window=128,
        full_layers=(1, 2),
        rope_base=150_000.0,
        rope=_GPT_OSS_ROPE,
    ),
)

_GEMMA_4 = "heads of another width in full layers, norms over values and a scale of each layer's output"
_LINEAR = "linear attention (gated delta rule) in most layers, whose state is made from left to right, in no other order"
_MISSING = {
    "pixtral": "images beside the text",
    "gemma3": "images beside the text; import a folder of its text model, whose model_type is gemma3_text",
    "gemma3n_text": "embeddings of its own in every layer",
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA_4),
    "qwen2_moe": "an expert that every token goes through beside those chosen",
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid"), _LINEAR),
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
    if isinstance(name, str) and name in _MISSING:
        raise UserError(f"model_type {shown(name)} is not supported: it needs {_MISSING[name]}")
    known = [family.name for family in FAMILIES]
    why = misspelt(name, known) if isinstance(name, str) else ""
    raise UserError(
        f"model_type {shown(name)} is not supported{why or _beyond(settings or {})}; supported are {', '.join(known)}"
    )


def _beyond(settings: Mapping[str, Any]) -> str:
    """What a `config.json` sets that a Llama's does not know."""
    names = [name for name, value in settings.items() if value and name not in _LLAMA_FIELDS]
    names = [name for name in names if re.fullmatch(r"[a-z0-9_]{1,40}", name)]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f": beyond a Llama's fields, its config.json sets {', '.join(names[:6])}{more}" if names else ""
