"""An any-order, any-subset (A3) language model in PyTorch (arXiv 2601.13228): Llama with a second stream.

A sequence is split into ordered groups; the tokens of one group are predicted in parallel from those of earlier groups.
The content stream knows its tokens: a position sees the content of its own group and of earlier ones. The query stream
does not know its token: it sees the content of earlier groups only, and its last hidden state predicts the token. Both
share all weights and pass through every layer together as rows, content rows first; keys and values come from content
rows only. A query stream may have adapters: low-rank changes of its weights, which leave the content stream as it is, and
the queries too that a plain autoregressive model could ask.

Letters of shapes: B batch, T tokens, R rows, S keys, D width, H query heads, K key-value heads, E head width, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_a3 import A3Config
from .decoding_a3 import A3Cache, A3Decoding
from .experts_a3 import MODULE, A3Experts


class A3RMSNorm(nn.Module):
    """Root-mean-square normalization over the last axis, in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Keeps shape and dtype."""
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def rope(config: A3Config, position: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, B x 1 x R x E/2, of the rotation of rows at `position` (B x R)."""
    half, parameters = config.head_dim // 2, config.rope_parameters
    rate = parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    if parameters.get("rope_type") == "llama3":  # slow down long waves, blend between
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = parameters["original_max_position_embeddings"] * rate / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        rate = rate * (keep + (1 - keep) / parameters["factor"])
    angle = position[:, None, :, None].float() * rate.float().to(position.device)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, ...]) -> Tensor:
    """Rotate the halves of every head, B x H x R x E."""
    cos, sin = turn
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class A3Adapted(nn.Module):
    """A module whose linear layers may have adapters: NAME beside NAME_in and NAME_out."""

    def add_linear(self, config: A3Config, name: str, inputs: int, outputs: int, bias: bool = False) -> None:
        """Make a layer, and its adapter if the model has some."""
        self.add_module(name, nn.Linear(inputs, outputs, bias=bias))
        if config.adapter_rank:
            self.add_module(f"{name}_in", nn.Linear(inputs, config.adapter_rank, bias=False))
            self.add_module(f"{name}_out", nn.Linear(config.adapter_rank, outputs, bias=False))

    def linear(self, name: str, x: Tensor, changed: Tensor) -> Tensor:
        """Apply a layer to `x`, B x R x inputs, and its adapter to the last rows, where `changed` (B x Q x 1) is True."""
        out, queries = getattr(self, name)(x), changed.shape[1]
        if not hasattr(self, f"{name}_in") or queries == 0:
            return out
        change = getattr(self, f"{name}_out")(getattr(self, f"{name}_in")(x[:, -queries:]))
        return torch.cat([out[:, :-queries], out[:, -queries:] + change.masked_fill(~changed, 0)], 1)


class A3Attention(A3Adapted):
    """Attention of rows to content rows."""

    def __init__(self, config: A3Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.add_linear(config, "q_proj", config.hidden_size, heads, config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.add_linear(config, "o_proj", heads, config.hidden_size)
        self.q_norm = self.k_norm = None
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.q_norm = A3RMSNorm(config.head_dim if per_head else heads, config.rms_norm_eps)
            self.k_norm = A3RMSNorm(config.head_dim if per_head else kv, config.rms_norm_eps)

    def forward(
        self, x: Tensor, changed: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor, cache: A3Cache | None
    ) -> Tensor:
        """`x` is B x R x D, its last Q rows queries; for `changed` see `linear`.

        `visible`, B x R x S, says which keys each row sees.
        """
        content = x.shape[1] - changed.shape[1]
        x_content, turn_content = x[:, :content], tuple(t[:, :, :content] for t in turn)
        query = rotate(self._heads(self.linear("q_proj", x, changed), self.q_norm), turn)
        key = rotate(self._heads(self.k_proj(x_content), self.k_norm), turn_content)
        value = self._heads(self.v_proj(x_content), None)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        # A row that sees nothing yields zero. Softmax over nothing is NaN, so let it see all and drop the result.
        nothing = ~visible.any(-1, keepdim=True)[:, None]
        mask = visible[:, None] | nothing
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return self.linear("o_proj", out.masked_fill(nothing, 0).transpose(1, 2).flatten(2), changed)

    def _heads(self, x: Tensor, norm: A3RMSNorm | None) -> Tensor:
        """B x R x (H E) to B x H x R x E, normalized over as many numbers as the norm has weights."""
        if norm is not None:
            x = norm(x.unflatten(-1, (-1, norm.weight.numel()))).flatten(2)
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class A3MLP(A3Adapted):
    """The gated feed-forward network."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.add_linear(config, "gate_proj", config.hidden_size, config.intermediate_size)
        self.add_linear(config, "up_proj", config.hidden_size, config.intermediate_size)
        self.add_linear(config, "down_proj", config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, changed: Tensor) -> Tensor:
        """Keeps the shape; for `changed` see `linear`."""
        gate, up = (self.linear(name, x, changed) for name in ("gate_proj", "up_proj"))
        return self.linear("down_proj", functional.silu(gate) * up, changed)


class A3Layer(nn.Module):
    """Attention and MLP or experts with residuals, normalized before (Llama) or after (OLMo 2)."""

    def __init__(self, config: A3Config, layer: int):
        super().__init__()
        self.self_attn = A3Attention(config, layer)
        self.feed_forward = MODULE.get(config.a3_family, "mlp")
        self.add_module(self.feed_forward, A3Experts(config) if config.num_experts else A3MLP(config))
        self.post_norm = config.post_norm
        self.post_attention_layernorm = A3RMSNorm(config.hidden_size, config.rms_norm_eps)
        other = "post_feedforward_layernorm" if config.post_norm else "input_layernorm"
        self.add_module(other, A3RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, x: Tensor, changed: Tensor, *attention: Any) -> Tensor:
        """Keeps the shape; `attention` is the rest of what `A3Attention.forward` takes."""
        feed_forward = getattr(self, self.feed_forward)
        if self.post_norm:
            x = x + self.post_attention_layernorm(self.self_attn(x, changed, *attention))
            return x + self.post_feedforward_layernorm(feed_forward(x, changed))
        x = x + self.self_attn(self.input_layernorm(x), changed, *attention)
        return x + feed_forward(self.post_attention_layernorm(x), changed)


class A3Model(nn.Module):
    """Embedding, layers and final norm, and the learned vector that seeds queries."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(A3Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = A3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.query_seed = nn.Parameter(torch.zeros(config.hidden_size))

    def queries(self, predecessor: Tensor, committed: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and RoPE positions of the queries at `position`.

        Under successor seeding the query of x_t is the one a plain autoregressive model would use, x_{t-1} at t-1; the
        learned vector stands for an x_{t-1} that is not yet `committed`. All arguments have one shape.
        """
        if self.config.seeding == "learned":
            return self.query_seed.expand(*position.shape, -1), position
        embedding = torch.where(committed[..., None], self.embed_tokens(predecessor), self.query_seed)
        return embedding, (position - 1).clamp(min=0)

    def forward(
        self, embedding: Tensor, position: Tensor, visible: Tensor, causal: Tensor, cache: A3Cache | None = None
    ) -> Tensor:
        """Last hidden states of rows, B x R x D; the last Q of them are query rows, the others enter the cache.

        `causal`, B x Q, says which queries see the tokens before their own and no others.
        """
        turn, x = rope(self.config, position), embedding
        changed = ~causal[..., None] if self.config.seeding == "successor" else torch.ones_like(causal[..., None])
        for layer in self.layers:
            x = layer(x, changed, turn, visible, cache)
        return self.norm(x)


class A3ForCausalLM(A3Decoding, PreTrainedModel):
    """Logits in any order, and generation in any order with a cache."""

    config_class = A3Config
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ("A3Layer",)

    def __init__(self, config: A3Config):
        super().__init__(config)
        self.model = A3Model(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is the head too where they are tied."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, or None where it is the embedding."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = value

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, ... x D to ... x V."""
        return functional.linear(hidden, (self.lm_head or self.model.embed_tokens).weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        groups: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits B x T x V of `input_ids`, B x T.

        Without `groups`, the content stream as a plain causal model: logits[:, t] predicts token t + 1.
        With `groups` (B x T integers, smaller groups come first), the query stream: logits[:, t] predicts token t from
        the tokens of earlier groups. Tokens to be given, not predicted, are best put first, each in a group of its own
        from left to right. `labels` may be `input_ids`, with -100 where there is no loss. `attention_mask` is 0 at padding.
        """
        T = input_ids.shape[1]
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        position = (real.cumsum(-1) - 1).clamp(min=0)
        order = position if groups is None else groups
        visible = (order[:, :, None] >= order[:, None, :]) & real[:, None]
        if self.config.content == "slot":  # of its own group, what stands before it
            visible &= (order[:, :, None] > order[:, None, :]) | (position[:, :, None] >= position[:, None, :])
        embedding = self.model.embed_tokens(input_ids)
        if groups is None:
            logits = self.logits(self.model(embedding, position, visible, real[:, :0]))
            predictions, labels = logits[:, :-1], None if labels is None else labels[:, 1:]
        else:
            query_visible = (groups[:, :, None] > groups[:, None, :]) & real[:, None]
            predecessor = input_ids.roll(1, 1)
            committed = (groups.roll(1, 1) < groups) & real.roll(1, 1)
            committed[:, 0] = False
            query, query_position = self.model.queries(predecessor, committed, position)
            earlier = (position[:, None, :] < position[:, :, None]) & real[:, None]
            causal = (query_visible == earlier).all(-1) & query_visible.any(-1)
            hidden = self.model(
                torch.cat([embedding, query], 1),
                torch.cat([position, query_position], 1),
                torch.cat([visible, query_visible], 1),
                causal,
            )
            logits = predictions = self.logits(hidden[:, T:])
        loss = None if labels is None else functional.cross_entropy(predictions.flatten(0, 1).float(), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)
