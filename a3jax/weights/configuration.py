"""A family's `config.json`, both ways, by its row in `a3jax.weights.families`.

What transformers takes where a file is silent is taken here. What no mechanism of ours computes is refused.
"""

from collections.abc import Mapping
from typing import Any, get_args

from a3jax.config import Activation, Experts, ModelConfig
from a3jax.errors import UserError, check_count, check_positive, shown
from a3jax.weights import rope
from a3jax.weights.families import ATTENTION_BIAS, MLP_BIAS, Family, Mixture, family_of
from a3jax.weights.generation import end_tokens, special_tokens, start_token

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu_sigmoid"}
"""Theirs and ours."""
assert set(ACTIVATIONS.values()) == set(get_args(Activation))
_BALANCE = "router_aux_loss_coef"
_MOST_LAYERS = 10_000
"""Of families whose layers are of several kinds."""
_REFUSED = {
    "transformers_weights": "transformers_weights (weights in a file of another name)",
    "clip_qkv": "clip_qkv (queries, keys and values that are cut off)",
    "use_bidirectional_attention": "use_bidirectional_attention (an encoder)",
}


class _Fields:
    """A parsed `config.json`, whose fields are asked for by type; `where` names the file in errors."""

    def __init__(self, settings: Mapping[str, Any], where: str):
        self.settings, self.where = settings, where

    def get(self, name: str) -> Any:
        return self.settings.get(name)

    def refuse(self, condition: bool, what: str) -> None:
        if condition:
            raise UserError(f"{self.where}: {what} is not supported")

    def needed(self, name: str) -> Any:
        if self.get(name) is None:
            raise UserError(f"{self.where}: field '{name}' is missing")
        return self.get(name)

    def count(self, name: str, default: int | None = None) -> int:
        value = default if self.get(name) is None else self.get(name)
        return check_count(f"{self.where}: {name}", self.needed(name) if value is None else value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name} is {shown(value)}; it must be true or false")
        return value

    def several(self, name: str, layers: int) -> list[Any]:
        """One entry a layer."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != layers:
            raise UserError(f"{self.where}: {name} is {shown(value)}; it must be a list of {layers}, one a layer")
        return value


def from_hf(config: Mapping[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from a parsed `config.json`, with what transformers takes where it is silent.

    `where` names the file in errors. Raises `UserError` for a family or a feature that is not supported, and for a number,
    a token or a truth value that is none.
    """
    family, fields = family_of(config.get("model_type"), config), _Fields(config, where)
    known = {number.theirs for number in family.numbers}
    for name, what in _REFUSED.items():
        fields.refuse(name not in known and fields.get(name) not in (None, False), what)
    for name, value in family.fixed.items():
        fields.refuse(fields.settings.get(name, value) != value, f"{name} {shown(fields.get(name))}")
    heads, width, vocab = (fields.count(name) for name in ("num_attention_heads", "hidden_size", "vocab_size"))
    silent = family.kv_heads if "num_key_value_heads" not in config else None
    kv_heads = fields.count("num_key_value_heads", silent or heads)
    head_width = fields.count("head_dim", family.head_width or width // heads)
    fields.refuse(heads % kv_heads != 0, f"num_attention_heads {heads} that num_key_value_heads {kv_heads} does not divide")
    fields.refuse(head_width % 2 != 0, f"odd head_dim {head_width}")
    made: dict[str, Any] = {
        **_feed_forward(fields, family.mixture),
        "layers": fields.count("num_hidden_layers"),
        "norm_eps": family.norm_eps or check_positive(f"{where}: rms_norm_eps", fields.needed("rms_norm_eps")),
        "activation": _activation(fields, family),
        "tied_head": fields.flag("tie_word_embeddings", family.tied_head),
        "embedding_scale": width**0.5 if family.scaled_embedding else 1.0,
        "start_token": start_token(config, where, vocab, family.start_token),
        "end_tokens": end_tokens(config, where, vocab, family.end_token),
    }
    made |= _biases(fields, family) | _numbers(fields, family) | _layers(fields, family, made["layers"])
    fields.needed("max_position_embeddings")
    made |= rope.from_hf(config, family, head_width, where) | dict(family.features)
    if not made.get("local_layers"):
        made["local_rope"] = None
    return ModelConfig(family.name, vocab, width, query_heads=heads, kv_heads=kv_heads, head_width=head_width, **made)


def _feed_forward(fields: _Fields, mixture: Mixture | None) -> dict[str, Any]:
    """Its width, and of experts all else. Refuses a model some of whose layers have none."""
    if mixture is None:
        return {"ff_width": fields.count("intermediate_size")}
    fields.refuse(fields.get("mlp_only_layers") not in (None, []), f"mlp_only_layers {shown(fields.get('mlp_only_layers'))}")
    fields.refuse(fields.count("decoder_sparse_step", 1) != 1, f"decoder_sparse_step {fields.get('decoder_sparse_step')}")
    other = "num_experts" if mixture.count == "num_local_experts" else "num_local_experts"  # transformers takes either
    count = fields.count(other if fields.get(mixture.count) is None else mixture.count, mixture.silent.count)
    active = fields.count("num_experts_per_tok", mixture.silent.active)
    fields.refuse(active > count, f"num_experts_per_tok {active} of {count} experts")
    balance = fields.settings.get(_BALANCE, mixture.silent.balance)
    balance = 0.0 if balance in (None, 0) else check_positive(f"{fields.where}: {_BALANCE}", balance)
    normalized = fields.flag("norm_topk_prob", mixture.silent.normalized)
    experts = Experts(count, active, normalized, balance, mixture.silent.biases)
    return {"ff_width": fields.count(mixture.width, mixture.silent_width), "experts": experts}


def _activation(fields: _Fields, family: Family) -> Activation:
    name = fields.get("hidden_activation") or fields.get("hidden_act") or family.activation
    if family.scaled_embedding and name == "gelu":  # what the first Gemma's files say, and do not mean
        name = "gelu_pytorch_tanh"
    fields.refuse(not isinstance(name, str) or name not in ACTIVATIONS, f"hidden_act {shown(name)}")
    return ACTIVATIONS[name]


def _biases(fields: _Fields, family: Family) -> dict[str, bool]:
    for name in (ATTENTION_BIAS, MLP_BIAS):
        fields.refuse(fields.flag(name) and name not in family.biases, f"{name} in a model of model_type '{family.name}'")
    attention, mlp = fields.flag(ATTENTION_BIAS, family.attention_bias), fields.flag(MLP_BIAS)
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}


def _numbers(fields: _Fields, family: Family) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for number in family.numbers:
        value = fields.settings.get(number.theirs, number.default)
        checked = None if value is None else check_positive(f"{fields.where}: {number.theirs}", value)
        found[number.ours] = None if checked is None else number.to_ours(checked)
    return found


def _layers(fields: _Fields, family: Family, layers: int) -> dict[str, Any]:
    """Which layers see a window only, and which do not turn."""
    if not family.slides and family.unrotated_every is None:
        return {}
    fields.refuse(layers > _MOST_LAYERS, f"num_hidden_layers {layers}")  # before they are listed
    unrotated: tuple[int, ...] = ()
    if family.unrotated_every is not None:
        if fields.get("no_rope_layers") is not None:  # it lists those that have one
            unrotated = tuple(i for i, turns in enumerate(fields.several("no_rope_layers", layers)) if not turns)
        else:
            every = fields.count("no_rope_layer_interval", family.unrotated_every)
            unrotated = tuple(range(every - 1, layers, every))
    local, window = _local(fields, family, layers)
    return {"unrotated_layers": unrotated, "local_layers": local, "local_window": window}


def _local(fields: _Fields, family: Family, layers: int) -> tuple[tuple[int, ...], int | None]:
    """The layers whose attention slides, and their window."""
    kinds = fields.get("layer_types")
    asked = not family.window_on_request or fields.flag("use_sliding_window")
    window = fields.settings.get("sliding_window", family.window) if asked else None
    if kinds is not None:
        known = isinstance(kinds, list) and len(kinds) == layers and all(kind in (rope.FULL, rope.LOCAL) for kind in kinds)
        fields.refuse(not known, f"layer_types {shown(kinds)}")
        fields.refuse(not asked and rope.LOCAL in kinds, f"layer_types {shown(kinds)} without use_sliding_window")
        local = tuple(i for i, kind in enumerate(kinds) if kind == rope.LOCAL)
    else:
        local = _by_pattern(fields, family, layers)
    if window is None or not local:
        return (), None
    return local, check_count(f"{fields.where}: sliding_window", window)


def _by_pattern(fields: _Fields, family: Family, layers: int) -> tuple[int, ...]:
    if family.window_on_request:
        return tuple(range(fields.count("max_window_layers", 28), layers))
    if family.full_layers is None:
        return tuple(range(layers))
    first, every = family.full_layers
    if fields.get("sliding_window_pattern") is not None:
        every = fields.count("sliding_window_pattern")
        first = every - 1
    return tuple(layer for layer in range(layers) if layer not in range(first, layers, every))


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of the family's own class, in the dialect that every version of transformers reads."""
    family = family_of(config.family)
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    if "activation" in family.features:  # whatever the file says
        activation = family.activation
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
        "rms_norm_eps": config.norm_eps,
        **rope.to_hf(config, family),
        "tie_word_embeddings": config.tied_head,
        "hidden_act": activation,
        "hidden_activation": activation,
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "torch_dtype": dtype,
    } | special_tokens(config)
    for number in family.numbers:
        value = getattr(config, number.ours)
        result[number.theirs] = None if value is None else number.to_theirs(value)
    return result | dict(family.fixed) | _experts_to_hf(config, family) | _layers_to_hf(config, family)


def _experts_to_hf(config: ModelConfig, family: Family) -> dict[str, Any]:
    experts, mixture = config.experts, family.mixture
    if experts is None or mixture is None:
        return {}
    said = {"num_experts_per_tok": experts.active, "norm_topk_prob": experts.normalized, _BALANCE: experts.balance}
    return said | {mixture.count: experts.count, mixture.width: config.ff_width}


def _layers_to_hf(config: ModelConfig, family: Family) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if family.unrotated_every is not None:
        result["no_rope_layers"] = [int(i not in config.unrotated_layers) for i in range(config.layers)]
    if family.slides:
        result["sliding_window"] = config.local_window
        if family.full_layers is not None or family.window_on_request or 0 < len(config.local_layers) < config.layers:
            kinds = [rope.LOCAL if i in config.local_layers else rope.FULL for i in range(config.layers)]
            result["layer_types"] = kinds
    if family.window_on_request:
        result["use_sliding_window"] = bool(config.local_layers)
    return result
