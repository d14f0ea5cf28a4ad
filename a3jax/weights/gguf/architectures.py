"""Which models llama.cpp computes: what GGUF calls a family, and what an architecture fixes that no file can change.

One row an architecture. What a row does not say is as in Llama, or said by the file (`a3jax.weights.gguf.configuration`).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from a3jax.config import LinearScaling, Llama3Scaling, LongScaling, ModelConfig, RopeScaling, YarnScaling
from a3jax.errors import UserError
from a3jax.weights.configuration import ACTIVATIONS
from a3jax.weights.families import family_of

EXPERT_COUNT, WINDOW = "expert_count", "attention.sliding_window"


@dataclass(frozen=True)
class Architecture:
    """What GGUF calls one or more of our families."""

    name: str
    families: tuple[str, ...]
    """Those written as it; a file of it is read as the first, which computes the same."""
    told_by: str | None = None
    """Metadata that tells its files from those of another row of that name."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Fields of `ModelConfig` that only this row has, and their metadata."""
    scalings: tuple[type[RopeScaling], ...] = (LinearScaling, YarnScaling)
    """What its rotary embedding may be stretched by."""
    pairs: bool = False
    """Whether rows of queries and keys are stored in rotary pairs side by side, where Hugging Face has halves."""
    partial: bool = False
    """Whether a part of each head may turn."""
    fused: bool = False
    """Whether matrices that the family stores as one are one here too."""
    biases: bool = False
    """Whether there may be biases everywhere."""
    fills: bool = False
    """Whether all heads together must be as wide as the model."""
    key_value_heads: bool = True
    """Whether there may be fewer of them than query heads."""
    tied_head: bool | None = None
    """Whether the head is the embedding; None: as the file has it."""
    slides: bool = False
    """Whether some layers may be local: of every so many all but the last."""
    silent_window: int | None = None
    """Of local layers, where a file is silent; None: there are none then."""
    local_base: bool = False
    """Whether local layers may have a rotary base of their own."""
    wide_scores: int | None = None
    """Of so many layers (the largest model of its kind), scores are scaled as if heads were as wide as D/H."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Fields of `ModelConfig` of which llama.cpp computes this value alone."""
    normalized: bool | None = None
    """Of experts, what llama.cpp does with the weights of those that are chosen (`Experts.normalized`); None: it has none."""


_LLAMA_SCALINGS = (Llama3Scaling, LinearScaling, YarnScaling)
_GRANITE = {"embedding_scale": "embedding_scale", "residual_scale": "residual_scale", "logit_divisor": "logit_scale"}
_LOGIT_CAP = {"logit_cap": "final_logit_softcapping"}
_ATTENTION_CAP = {"attention_cap": "attn_logit_softcapping"}
ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), scalings=_LLAMA_SCALINGS, pairs=True, biases=True),
    Architecture("qwen2", ("qwen2",)),
    Architecture("qwen3", ("qwen3",)),
    Architecture("olmo", ("olmo",), None, {"qkv_limit": "attention.clamp_kqv"}, pairs=True, fills=True),
    Architecture("olmo2", ("olmo2",), fills=True, tied_head=False),
    Architecture("olmo2", ("olmo3",), WINDOW, fills=True, tied_head=False, slides=True),
    Architecture("gemma", ("gemma",), tied_head=True),
    Architecture(
        "gemma2",
        ("gemma2",),
        None,
        _ATTENTION_CAP | _LOGIT_CAP,
        tied_head=True,
        slides=True,
        silent_window=4096,
        wide_scores=46,
    ),
    Architecture(
        "gemma3", ("gemma3_text",), None, _LOGIT_CAP, (LinearScaling,), slides=True, local_base=True, wide_scores=62
    ),
    Architecture(
        "granite",
        ("granite",),
        None,
        _GRANITE | {"attention_scale": "attention.scale"},
        _LLAMA_SCALINGS,
        pairs=True,
        biases=True,
    ),
    Architecture("phi3", ("phi3",), scalings=(LongScaling,), partial=True, fused=True, fills=True),
    Architecture("smollm3", ("smollm3",), pairs=True),
    Architecture("llama", ("mixtral",), EXPERT_COUNT, scalings=_LLAMA_SCALINGS, pairs=True, normalized=True),
    Architecture("qwen3moe", ("qwen3_moe",), EXPERT_COUNT, normalized=True),
    Architecture("olmoe", ("olmoe",), EXPERT_COUNT, fills=True, key_value_heads=False, normalized=False),
    Architecture(
        "gpt-oss",
        ("gpt_oss",),
        EXPERT_COUNT,
        biases=True,
        tied_head=False,
        slides=True,
        fixed={"gate_limit": 7.0},
        normalized=True,
    ),
)


def architecture_of(family: str) -> Architecture:
    """What GGUF calls a family of ours. Raises `UserError` if it is not in the table."""
    for architecture in ARCHITECTURES:
        if family in architecture.families:
            return architecture
    known = ", ".join(family for architecture in ARCHITECTURES for family in architecture.families)
    raise UserError(f"a model of the family '{family}' cannot be written as GGUF; possible are {known}")


def architecture_named(name: object, told: Collection[str]) -> Architecture | None:
    """The row of a file, by the name of its architecture and the metadata that it has and that are not 0."""
    rows = [row for row in ARCHITECTURES if row.name == name and (row.told_by is None or row.told_by in told)]
    if EXPERT_COUNT in told:
        rows = [row for row in rows if row.normalized is not None]
    return max(rows, key=lambda row: row.told_by is not None, default=None)


def score_scale(architecture: Architecture, config: ModelConfig) -> float:
    """What llama.cpp multiplies attention's scores with where no file says it."""
    wide = config.layers == architecture.wide_scores
    return float((config.width // config.query_heads if wide else config.head_width) ** -0.5)


def local_layers(layers: int, every: int) -> tuple[int, ...]:
    """Of every so many layers all but the last, as llama.cpp counts local ones."""
    return tuple(layer for layer in range(layers) if layer % every < every - 1)


def period(config: ModelConfig) -> int | None:
    """Of every how many layers all but the last are local; None: they do not follow each other so."""
    found = (every for every in range(1, config.layers + 2) if local_layers(config.layers, every) == config.local_layers)
    return next(found, None)


def check_writable(config: ModelConfig) -> None:
    """Raise `UserError` for what a model has beyond what the architecture of its family computes in llama.cpp."""
    row, family, scaling = architecture_of(config.family), family_of(config.family), config.rope_scaling
    beyond = {
        "other weights of experts": config.experts is not None and config.experts.normalized != row.normalized,
        "biases beyond those of its family": not row.biases and _biased(config) > bool(family.features.get("qkv_bias")),
        "attention without biases": family.attention_bias and not config.output_bias,
        "queries, keys and values that are cut off": config.qkv_limit is not None and "qkv_limit" not in row.numbers,
        "a rotary embedding of parts of heads": config.rotary_width is not None and not row.partial,
        f"RoPE scaling that no file of its family holds ({scaling})": scaling is not None and not _stretches(row, scaling),
        "heads that are together not as wide as it": row.fills and config.query_heads * config.head_width != config.width,
        "fewer key-value heads": not row.key_value_heads and config.kv_heads != config.query_heads,
        "a head of its own": bool(row.tied_head) and not config.tied_head,
        "a head that is the embedding": row.tied_head is False and config.tied_head,
        "another activation": config.activation != family.features.get("activation", ACTIVATIONS[family.activation]),
        f"another {' or '.join(row.fixed)}": any(getattr(config, name) != value for name, value in row.fixed.items()),
        "other layers without rotary embedding": config.unrotated_layers != unrotated_layers(config.family, config.layers),
        "other local layers": row.slides and (period(config) is None or not _turns_alike(row, config)),
        "another scale of attention's scores": "attention_scale" not in row.numbers
        and config.attention_scale is not None
        and not math.isclose(config.attention_scale, score_scale(row, config), rel_tol=1e-6),
        "a soft cap less": any(
            number.default is not None and getattr(config, number.ours) is None
            for number in family.numbers
            if number.ours in row.numbers
        ),
    }
    for what, has in beyond.items():
        if has:
            raise UserError(f"a model with {what} cannot be written as GGUF; export its folder instead")


def unrotated_layers(family: str, layers: int) -> tuple[int, ...]:
    """Those without rotary embedding in llama.cpp, which no file can change."""
    every = family_of(family).unrotated_every
    return () if every is None else tuple(range(every - 1, layers, every))


def _biased(config: ModelConfig) -> int:
    """0 without biases, 1 with those of queries, keys and values, 2 with others."""
    return 2 if config.output_bias or config.mlp_bias else int(config.qkv_bias)


def _stretches(row: Architecture, scaling: RopeScaling) -> bool:
    if isinstance(scaling, YarnScaling) and (scaling.beta_fast, scaling.beta_slow, scaling.truncate) != (
        32,
        1,
        truncates(row),
    ):
        return False
    return isinstance(scaling, row.scalings)


def truncates(row: Architecture) -> bool:
    """Whether YaRN's edges are whole waves in the models of a row, which no file says."""
    return bool(family_of(row.families[0]).rope.get("truncate", True))


def _turns_alike(row: Architecture, config: ModelConfig) -> bool:
    """Whether llama.cpp has the rotary embedding of local layers: not stretched, unless it is that of the others."""
    local = config.local_rope
    return local is None or (local.scaling is None and (row.local_base or local.theta == config.rope_theta))
