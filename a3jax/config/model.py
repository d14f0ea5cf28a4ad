"""The shape of a network, which lies beside its weights as `model.json`."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from a3jax.config.rope import LongScaling, Rope, RopeScaling
from a3jax.errors import UserError, check_count, check_positive, check_token, shown

Seeding = Literal["successor", "two_sided", "learned"]
Content = Literal["group", "slot"]
AdapterStream = Literal["query", "both"]
Norm = Literal["rms", "rms_offset", "layer"]
Activation = Literal["silu", "gelu_tanh", "gelu_sigmoid"]
Dtype = Literal["float32", "bfloat16", "int8"]
"""In which a model may be loaded."""


class LayerKind(NamedTuple):
    """What sets layers of one model apart."""

    window: int | None
    """Tokens that local attention sees, a row's own included; None: all that the order shows."""
    rope: Rope | None
    """None: positions do not enter."""


@dataclass(frozen=True)
class Experts:
    """A feed-forward of several experts, of which a router chooses some for each row (Mixtral, arXiv 2401.04088).

    Raises `UserError` for a number that means nothing.
    """

    count: int
    active: int
    """Experts that a row goes through."""
    normalized: bool = True
    """Whether the router's weights of these add up to 1; else they are its probabilities among all."""
    balance: float = 0.0
    """What the load-balancing loss is multiplied with where routers are trained: `router_aux_loss_coef` of Hugging Face."""
    biases: bool = False
    """Of the router and of the experts (gpt-oss)."""

    def __post_init__(self) -> None:
        check_count("experts.count", self.count)
        if check_count("experts.active", self.active) > self.count:
            raise UserError(f"experts.active is {self.active}, but there are only {self.count} experts")
        if not (isinstance(self.balance, int | float) and 0 <= self.balance < math.inf):
            raise UserError(f"experts.balance is {shown(self.balance)}; it must be 0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """One transformer with gated MLPs, of the Llama kind. Widths in numbers of floats, `context` in tokens.

    A field's default is what Llama has. Raises `UserError`, with the field's name, for a number or a token that no model can
    have.
    """

    family: str
    vocab: int
    width: int
    ff_width: int
    layers: int
    query_heads: int
    kv_heads: int
    head_width: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_width: int | None = None
    """How many numbers of a head turn, the first ones; None: all (Phi-4 turns three quarters)."""
    unrotated_layers: tuple[int, ...] = ()
    """Layers without rotary embedding (SmolLM3)."""
    local_layers: tuple[int, ...] = ()
    """Layers whose rows see keys within `local_window` tokens of their own position only (Gemma 2 and 3, OLMo 3)."""
    local_window: int | None = None
    local_rope: Rope | None = None
    """Of local layers; None: as of the others (Gemma 3 and OLMo 3 have two)."""
    tied_head: bool = False
    """Whether the head is the embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Of attention's output (a Llama with `attention_bias`)."""
    mlp_bias: bool = False
    qkv_limit: float | None = None
    """Queries, keys and values are cut off at it on both sides (OLMo)."""
    query_key_norm: Literal["none", "head", "full"] = "none"
    """`head`: a norm over each head (Qwen 3, Gemma 3); `full`: over all heads at once (OLMo 2)."""
    experts: Experts | None = None
    """Of every layer's feed-forward, `ff_width` wide each (Mixtral, Qwen 3 MoE, OLMoE); None: it is one dense MLP."""
    norm: Norm = "rms"
    """`rms_offset`: RMSNorm that multiplies with 1 + weight (Gemma); `layer`: LayerNorm without weights (OLMo)."""
    pre_norm: bool = True
    """Whether the inputs of attention and MLP are normalized."""
    post_norm: bool = False
    """Whether their outputs are: instead (OLMo 2) or as well (Gemma 2)."""
    activation: Activation = "silu"
    """Of the MLP's gate."""
    gate_limit: float | None = None
    """Gates are cut off above it, what they multiply on both sides, and 1 is added to that (gpt-oss)."""
    embedding_scale: float = 1.0
    """What embeddings are multiplied with (Gemma, Granite)."""
    residual_scale: float = 1.0
    """What the outputs of attention and MLP are multiplied with (Granite)."""
    attention_scale: float | None = None
    """What attention's scores are multiplied with; None: head_width^-1/2."""
    attention_cap: float | None = None
    """Scores are bent to stay within it, as cap tanh(score / cap) (Gemma 2)."""
    attention_sinks: bool = False
    """Every head has a learned logit that takes a share of each row's softmax, and no value (gpt-oss)."""
    logit_divisor: float = 1.0
    """What logits are divided by (Granite)."""
    logit_cap: float | None = None
    """The same for logits as `attention_cap`."""
    seeding: Seeding = "successor"
    """What a query starts from: x_{t-1} where it is decided, else a learned vector (`successor`); the same, to which x_{t+1}
    adds where that is decided (`two_sided`); or always the vector (`learned`)."""
    content: Content = "group"
    """Up to where a content row sees: the end of its `group`, as in the paper, or its own `slot`, as in the source model."""
    adapter_rank: int = 0
    """Inner width A of low-rank changes to the weights (Hu et al., arXiv 2106.09685); 0: there are none."""
    adapter_stream: AdapterStream = "query"
    """`query`: they change the query stream alone, and the content stream stays the source model; `both`: both streams."""
    start_token: int | None = None
    """`bos_token_id` of Hugging Face: given, never predicted. It stands where nothing else is before a token to predict."""
    starts: bool = True
    """Whether every document begins with it. An import takes that from the tokenizer."""
    end_tokens: tuple[int, ...] = ()
    """The first of them ends every document; each of them ends a text that is generated."""

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "ff_width", "layers", "query_heads", "kv_heads", "head_width", "context"):
            check_count(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta", "embedding_scale", "residual_scale", "logit_divisor"):
            check_positive(name, getattr(self, name))
        for name in ("attention_scale", "attention_cap", "logit_cap", "gate_limit", "qkv_limit"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.query_heads % self.kv_heads:
            raise UserError(f"query_heads {self.query_heads} cannot share kv_heads {self.kv_heads}; these must divide them")
        if self.head_width % 2:
            raise UserError(f"head_width is {self.head_width}; it must be even")
        if self.adapter_rank != 0:
            check_count("adapter_rank", self.adapter_rank)
        self._check_layers()
        if self.start_token is not None:
            check_token("start_token", self.start_token, self.vocab)
        for token in self.end_tokens:
            check_token("end_tokens", token, self.vocab)

    def _check_layers(self) -> None:
        """Raise `UserError` for what layers cannot have."""
        turning = self.turning
        if not (0 < turning <= self.head_width and turning % 2 == 0):
            raise UserError(f"rotary_width is {turning}; it must be even, and at most head_width {self.head_width}")
        for name in ("unrotated_layers", "local_layers"):
            if any(not 0 <= layer < self.layers for layer in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; there are the layers 0 to {self.layers - 1}")
        if self.local_layers:
            check_count("local_window", self.local_window)
        for scaling in (self.rope_scaling, self.local_rope and self.local_rope.scaling):
            for name in ("short_factors", "long_factors") if isinstance(scaling, LongScaling) else ():
                if len(getattr(scaling, name)) != turning // 2:
                    raise UserError(f"{name} are {len(getattr(scaling, name))} numbers; {turning // 2} waves need as many")

    @property
    def turning(self) -> int:
        """How many numbers of a head turn."""
        return self.head_width if self.rotary_width is None else self.rotary_width

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What every layer is, N."""
        rope = Rope(self.rope_theta, self.rope_scaling)

        def kind(layer: int) -> LayerKind:
            local = layer in self.local_layers
            turns = None if layer in self.unrotated_layers else (self.local_rope or rope) if local else rope
            return LayerKind(self.local_window if local else None, turns)

        return tuple(map(kind, range(self.layers)))

    @property
    def document_start(self) -> int | None:
        """The token that every document begins with."""
        return self.start_token if self.starts else None
