"""The shape of a network, which lies beside its weights as `model.json`."""

import math
from dataclasses import dataclass
from typing import Literal

from a3jax.errors import UserError, check_count, check_positive, check_token, shown

Seeding = Literal["successor", "learned"]
Content = Literal["group", "slot"]
AdapterStream = Literal["query", "both"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (Llama 3.1, `rope_type: llama3`); lengths in tokens.

    Raises `UserError` for a number that means nothing.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_positive(name, getattr(self, name))
        check_count("original_context", self.original_context)
        if not self.low_freq_factor < self.high_freq_factor:
            raise UserError(f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}")


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

    def __post_init__(self) -> None:
        check_count("experts.count", self.count)
        if check_count("experts.active", self.active) > self.count:
            raise UserError(f"experts.active is {self.active}, but there are only {self.count} experts")
        if not (isinstance(self.balance, int | float) and 0 <= self.balance < math.inf):
            raise UserError(f"experts.balance is {shown(self.balance)}; it must be 0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """One transformer of the Llama family. Widths in numbers of floats, `context` in tokens.

    Raises `UserError`, with the field's name, for a number or a token that no model can have.
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
    tied_head: bool = False
    qkv_bias: bool = False
    query_key_norm: Literal["none", "head", "full"] = "none"
    """`head`: RMSNorm over each head (Qwen3); `full`: over all heads at once (OLMo 2)."""
    experts: Experts | None = None
    """None: one dense feed-forward. With experts, `ff_width` is that of one of them."""
    post_norm: bool = False
    """Normalize the outputs of attention and MLP instead of their inputs (OLMo 2)."""
    seeding: Seeding = "successor"
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
        for name in ("norm_eps", "rope_theta"):
            check_positive(name, getattr(self, name))
        if self.query_heads % self.kv_heads:
            raise UserError(f"query_heads {self.query_heads} cannot share kv_heads {self.kv_heads}; these must divide them")
        if self.head_width % 2:
            raise UserError(f"head_width is {self.head_width}; it must be even")
        if self.adapter_rank != 0:
            check_count("adapter_rank", self.adapter_rank)
        if self.start_token is not None:
            check_token("start_token", self.start_token, self.vocab)
        for token in self.end_tokens:
            check_token("end_tokens", token, self.vocab)

    @property
    def document_start(self) -> int | None:
        """The token that every document begins with."""
        return self.start_token if self.starts else None
