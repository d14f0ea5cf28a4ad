"""An any-order, any-subset (A3) language model in PyTorch (arXiv 2601.13228): Llama with a second stream.

A sequence is split into ordered groups; the tokens of one group are predicted in parallel from those of earlier groups.
The content stream knows its tokens: a position sees the content of its own group and of earlier ones. The query stream
does not know its token: it sees the content of earlier groups only, and its last hidden state predicts the token. Both
share all weights and pass through every layer together as rows, content rows first; keys and values come from content
rows only. Layers may be of several kinds, which differ in how positions enter and in how far rows see. A query stream may
have adapters: low-rank changes of its weights, which leave the content stream as it is, and the queries too that a plain
autoregressive model could ask.

Letters of shapes: B batch, T tokens, R rows, S keys, D width, H query heads, K key-value heads, E head width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_a3 import A3Config
from .decoding_a3 import A3Cache, A3Decoding
from .experts_a3 import MODULE, A3Experts


class A3Norm(nn.Module):
    """Normalization over the last axis, in float32: RMSNorm with a weight or with 1 + weight, or LayerNorm without one."""

    def __init__(self, config: A3Config, width: int):
        super().__init__()
        self.kind, self.eps, self.width = config.norm, config.rms_norm_eps, width
        self.weight = None if self.kind == "layer" else nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps shape and dtype."""
        x32 = x.float()
        if self.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdim=True)
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return x32.to(x.dtype)
        if self.kind == "rms_offset":
            return (x32 * (1 + self.weight.float())).to(x.dtype)
        return x32.to(x.dtype) * self.weight


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Bend numbers to stay within a bound; as they are where there is none."""
    return x if cap is None else cap * torch.tanh(x / cap)


class A3Kind(NamedTuple):
    """What rows are to layers of one kind."""

    cos: Tensor  # B x 1 x R x e, of each row's rotation
    sin: Tensor
    visible: Tensor  # B x R x S, which keys each row sees


def kinds_of(config: A3Config, position: Tensor, visible: Tensor, key_position: Tensor) -> list[A3Kind]:
    """Rows at `position` (B x R) that see what is `visible` of keys at theirs (B x S), as every kind of layers takes them."""
    result = []
    for kind in config.layer_kinds:
        rates = torch.tensor(kind["frequencies"], device=position.device)
        angle, factor = position[:, None, :, None].float() * rates, kind["attention_factor"]
        distance = (position[:, :, None] - key_position[:, None, :]).abs()
        near = visible if kind["window"] is None else visible & (distance < kind["window"])
        result.append(A3Kind(angle.cos() * factor, angle.sin() * factor, near))
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 e numbers of every head, B x H x R x E, half against half."""
    half = cos.shape[-1]
    a, b, still = x.float().split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, still], -1).to(x.dtype)


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
        self.layer, self.head_dim, self.cap = layer, config.head_dim, config.attention_cap
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.add_linear(config, "q_proj", config.hidden_size, heads, config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.add_linear(config, "o_proj", heads, config.hidden_size, config.output_bias)
        self.q_norm = self.k_norm = None
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.q_norm = A3Norm(config, config.head_dim if per_head else heads)
            self.k_norm = A3Norm(config, config.head_dim if per_head else kv)

    def forward(self, x: Tensor, changed: Tensor, kind: A3Kind, cache: A3Cache | None) -> Tensor:
        """`x` is B x R x D, its last Q rows queries, and what rows are here `kind`; for `changed` see `linear`."""
        content = x.shape[1] - changed.shape[1]
        x_content, turn = x[:, :content], (kind.cos[:, :, :content], kind.sin[:, :, :content])
        query = rotate(self._heads(self.linear("q_proj", x, changed), self.q_norm), kind.cos, kind.sin)
        key = rotate(self._heads(self.k_proj(x_content), self.k_norm), *turn)
        value = self._heads(self.v_proj(x_content), None)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        # A row that sees nothing yields zero. Softmax over nothing is NaN, so let it see all and drop the result.
        nothing = ~kind.visible.any(-1, keepdim=True)[:, None]
        out = self._attend(query, key, value, kind.visible[:, None] | nothing).masked_fill(nothing, 0)
        return self.linear("o_proj", out.transpose(1, 2).flatten(2), changed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        if self.cap is None:
            how = {"attn_mask": mask, "scale": self.scale, "enable_gqa": True}
            return functional.scaled_dot_product_attention(query, key, value, **how)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = capped(query @ key.mT * self.scale, self.cap).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1, torch.float32).to(value.dtype) @ value

    def _heads(self, x: Tensor, norm: A3Norm | None) -> Tensor:
        """B x R x (H E) to B x H x R x E, normalized over as many numbers as the norm is wide."""
        if norm is not None:
            x = norm(x.unflatten(-1, (-1, norm.width))).flatten(2)
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class A3MLP(A3Adapted):
    """The gated feed-forward network."""

    def __init__(self, config: A3Config):
        super().__init__()
        bias, width, inner = config.mlp_bias, config.hidden_size, config.intermediate_size
        self.gelu = config.activation == "gelu_tanh"
        for name, inputs, outputs in [("gate_proj", width, inner), ("up_proj", width, inner), ("down_proj", inner, width)]:
            self.add_linear(config, name, inputs, outputs, bias)

    def forward(self, x: Tensor, changed: Tensor) -> Tensor:
        """Keeps the shape; for `changed` see `linear`."""
        gate, up = (self.linear(name, x, changed) for name in ("gate_proj", "up_proj"))
        gate = functional.gelu(gate, approximate="tanh") if self.gelu else functional.silu(gate)
        return self.linear("down_proj", gate * up, changed)


class A3Layer(nn.Module):
    """Attention and MLP or experts with residuals, normalized before (Llama), after (OLMo 2) or both (Gemma 2)."""

    def __init__(self, config: A3Config, layer: int):
        super().__init__()
        self.self_attn = A3Attention(config, layer)
        self.feed_forward = MODULE.get(config.a3_family, "mlp")
        self.add_module(self.feed_forward, A3Experts(config) if config.num_experts else A3MLP(config))
        self.pre_norm, self.post_norm, self.scale = config.pre_norm, config.post_norm, config.residual_scale
        before = ("input_layernorm", "pre_feedforward_layernorm" if self.post_norm else "post_attention_layernorm")
        after = ("post_attention_layernorm", "post_feedforward_layernorm")
        self.before, self.after = before if self.pre_norm else (), after if self.post_norm else ()
        for name in (*self.before, *self.after):
            self.add_module(name, A3Norm(config, config.hidden_size))

    def forward(self, x: Tensor, changed: Tensor, kind: A3Kind, cache: A3Cache | None) -> Tensor:
        """Keeps the shape; the arguments are those of `A3Attention.forward`."""
        out = self.self_attn(self._normed(self.before, 0, x), changed, kind, cache)
        x = x + self._normed(self.after, 0, out) * self.scale
        out = getattr(self, self.feed_forward)(self._normed(self.before, 1, x), changed)
        return x + self._normed(self.after, 1, out) * self.scale

    def _normed(self, names: tuple[str, ...], which: int, x: Tensor) -> Tensor:
        return getattr(self, names[which])(x) if names else x


class A3Model(nn.Module):
    """Embedding, layers and final norm, and the learned vector that seeds queries."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(A3Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = A3Norm(config, config.hidden_size)
        self.query_seed = nn.Parameter(torch.zeros(config.hidden_size))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens of any shape, ... x D."""
        return self._scaled(self.embed_tokens(tokens))

    def _scaled(self, embedding: Tensor) -> Tensor:
        return embedding * torch.tensor(self.config.embedding_scale, dtype=embedding.dtype, device=embedding.device)

    def queries(self, predecessor: Tensor, committed: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and RoPE positions of the queries at `position`.

        Under successor seeding the query of x_t is the one a plain autoregressive model would use, x_{t-1} at t-1; the
        learned vector stands for an x_{t-1} that is not yet `committed`. All arguments have one shape.
        """
        seed = self._scaled(self.query_seed)
        if self.config.seeding == "learned":
            return seed.expand(*position.shape, -1), position
        embedding = torch.where(committed[..., None], self.embed(predecessor), seed)
        return embedding, (position - 1).clamp(min=0)

    def forward(
        self,
        embedding: Tensor,
        position: Tensor,
        visible: Tensor,
        key_position: Tensor,
        causal: Tensor,
        cache: A3Cache | None = None,
    ) -> Tensor:
        """Last hidden states of rows, B x R x D; the last Q of them are query rows, the others enter the cache.

        `visible`, B x R x S, says which keys rows see, before any window; `key_position`, B x S, where these stand, and
        `causal`, B x Q, which queries see the tokens before their own and no others.
        """
        kinds, x = kinds_of(self.config, position, visible, key_position), embedding
        changed = ~causal[..., None] if self.config.seeding == "successor" else torch.ones_like(causal[..., None])
        for layer, number in zip(self.layers, self.config.kind_of_layer):
            x = layer(x, changed, kinds[number], cache)
        return self.norm(x) / self.config.logit_divisor


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
        return capped(functional.linear(hidden, (self.lm_head or self.model.embed_tokens).weight), self.config.logit_cap)

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
        embedding = self.model.embed(input_ids)
        if groups is None:
            logits = self.logits(self.model(embedding, position, visible, position, real[:, :0]))
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
                position,
                causal,
            )
            logits = predictions = self.logits(hidden[:, T:])
        loss = None if labels is None else functional.cross_entropy(predictions.flatten(0, 1).float(), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)
