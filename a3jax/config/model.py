"""The shape of a network, which lies beside its weights as `model.json`."""

from dataclasses import dataclass
from typing import Literal

Seeding = Literal["successor", "learned"]
AdapterStream = Literal["query", "both"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (Llama 3.1, `rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """One transformer of the Llama family. Widths in numbers of floats, `context` in tokens."""

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
    post_norm: bool = False
    """Normalize the outputs of attention and MLP instead of their inputs (OLMo 2)."""
    seeding: Seeding = "successor"
    adapter_rank: int = 0
    """Inner width A of low-rank changes to the weights (Hu et al., arXiv 2106.09685); 0: there are none."""
    adapter_stream: AdapterStream = "query"
    """`query`: they change the query stream alone, and the content stream stays the source model; `both`: both streams."""
    start_token: int | None = None
    """The token every document begins with; given, never predicted."""
    end_tokens: tuple[int, ...] = ()
