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

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_a3 import A3Config
from .decoding_a3 import A3Decoding
from .experts_a3 import MODULE, A3Experts, gated

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What the transformers that is installed calls the keys and values of earlier tokens."""


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
    visible: Tensor | None  # B x R x S, which keys each row sees; None: those up to its own


def kinds_of(config: A3Config, position: Tensor, visible: Tensor | None, distance: Tensor | None) -> list[A3Kind]:
    """Rows at `position`, B x R, as every kind of layers takes them; the arguments are those of `A3Model.forward`."""
    result = []
    for kind in config.layer_kinds:
        rates = torch.tensor(kind["frequencies"], device=position.device)
        angle, factor, near = position[:, None, :, None].float() * rates, kind["attention_factor"], visible
        if distance is not None and kind["window"] is not None:
            _, rows, keys = distance.shape
            seen = up_to_their_own(rows, keys, distance.device) if visible is None else visible
            near = seen & (distance < kind["window"])
        result.append(A3Kind(angle.cos() * factor, angle.sin() * factor, near))
    return result


def up_to_their_own(rows: int, keys: int, device: torch.device) -> Tensor:
    """Which keys the last rows of a text see from left to right, R x S."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)


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
        self.layer, self.head_dim, self.cap, self.limit = layer, config.head_dim, config.attention_cap, config.qkv_limit
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.add_linear(config, "q_proj", config.hidden_size, heads, config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.add_linear(config, "o_proj", heads, config.hidden_size, config.output_bias)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads)) if config.attention_sinks else None
        self.q_norm = self.k_norm = None
        if config.query_key_norm != "none":
            per_head = config.query_key_norm == "head"
            self.q_norm = A3Norm(config, config.head_dim if per_head else heads)
            self.k_norm = A3Norm(config, config.head_dim if per_head else kv)

    def forward(self, x: Tensor, changed: Tensor, kind: A3Kind, cache: DynamicCache | None) -> Tensor:
        """`x` is B x R x D, its last Q rows queries, and what rows are here `kind`; for `changed` see `linear`."""
        content = x.shape[1] - changed.shape[1]
        x_content, turn = x[:, :content], (kind.cos[:, :, :content], kind.sin[:, :, :content])
        query = rotate(self._heads(self.linear("q_proj", x, changed), self.q_norm), kind.cos, kind.sin)
        key = rotate(self._heads(self.k_proj(x_content), self.k_norm), *turn)
        value = self._heads(self.v_proj(x_content), None)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        if kind.visible is None:
            out = self._attend(query, key, value, None)
        else:
            key, value = (x[:, :, : kind.visible.shape[-1]] for x in (key, value))  # a static cache has room for more
            # A row that sees nothing yields zero. Softmax over nothing is NaN, so let it see all and drop the result.
            nothing = ~kind.visible.any(-1, keepdim=True)[:, None]
            out = self._attend(query, key, value, kind.visible[:, None] | nothing).masked_fill(nothing, 0)
        return self.linear("o_proj", out.transpose(1, 2).flatten(2), changed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        causal = mask is None and query.shape[2] > 1  # for which PyTorch has faster kernels
        if self.cap is None and self.sinks is None:
            return functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=causal, scale=self.scale, enable_gqa=True
            )
        if mask is None:
            mask = up_to_their_own(query.shape[2], key.shape[2], key.device)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = capped(query @ key.mT * self.scale, self.cap).masked_fill(~mask, -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1, torch.float32).to(value.dtype) @ value
        sinks = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)  # of a key without a value
        return torch.cat([scores, sinks], -1).softmax(-1, torch.float32)[..., :-1].to(value.dtype) @ value

    def _heads(self, x: Tensor, norm: A3Norm | None) -> Tensor:
        """B x R x (H E) to B x H x R x E, normalized over as many numbers as the norm is wide, and cut off."""
        if norm is not None:
            x = norm(x.unflatten(-1, (-1, norm.width))).flatten(2)
        if self.limit is not None:
            x = x.clamp(-self.limit, self.limit)
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class A3MLP(A3Adapted):
    """The gated feed-forward network."""

    def __init__(self, config: A3Config):
        super().__init__()
        bias, width, inner = config.mlp_bias, config.hidden_size, config.intermediate_size
        self.config = config
        for name, inputs, outputs in [("gate_proj", width, inner), ("up_proj", width, inner), ("down_proj", inner, width)]:
            self.add_linear(config, name, inputs, outputs, bias)

    def forward(self, x: Tensor, changed: Tensor) -> Tensor:
        """Keeps the shape; for `changed` see `linear`."""
        gate, up = (self.linear(name, x, changed) for name in ("gate_proj", "up_proj"))
        return self.linear("down_proj", gated(self.config, gate, up), changed)


class A3Layer(GradientCheckpointingLayer):
    """Attention and MLP or experts with residuals, normalized before (Llama), after (OLMo 2) or both (Gemma 2)."""

    def __init__(self, config: A3Config, layer: int):
        super().__init__()
        self.self_attn = A3Attention(config, layer)
        self.feed_forward = MODULE.get(config.a3_family, "mlp")
        self.add_module(self.feed_forward, A3Experts(config) if config.num_experts else A3MLP(config))
        self.scale = config.residual_scale
        mlp_norm = "pre_feedforward_layernorm" if config.post_norm else "post_attention_layernorm"
        self.before = ("input_layernorm", mlp_norm) if config.pre_norm else (None, None)
        self.after = ("post_attention_layernorm", "post_feedforward_layernorm") if config.post_norm else (None, None)
        for name in filter(None, (*self.before, *self.after)):
            self.add_module(name, A3Norm(config, config.hidden_size))

    def forward(self, x: Tensor, changed: Tensor, kind: A3Kind, cache: DynamicCache | None) -> Tensor:
        """Keeps the shape; the arguments are those of `A3Attention.forward`."""
        attended = self.self_attn(self._normed(self.before[0], x), changed, kind, cache)
        x = x + self._normed(self.after[0], attended) * self.scale
        out = getattr(self, self.feed_forward)(self._normed(self.before[1], x), changed)
        return x + self._normed(self.after[1], out) * self.scale

    def _normed(self, norm: str | None, x: Tensor) -> Tensor:
        return x if norm is None else getattr(self, norm)(x)


class A3Model(nn.Module):
    """Embedding, layers and final norm, and the learned vector that seeds queries."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(A3Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = A3Norm(config, config.hidden_size)
        self.query_seed = nn.Parameter(torch.zeros(config.hidden_size))
        if config.seeding == "two_sided":
            self.successor_seed = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def scaled(self, embedding: Tensor) -> Tensor:
        """What enters the first layer, of embeddings of any shape, ... x D."""
        scale = self.config.embedding_scale
        return embedding if scale == 1 else embedding * torch.tensor(scale, dtype=embedding.dtype, device=embedding.device)

    def distance(self, row: Tensor, key: Tensor) -> Tensor | None:
        """How far from rows, B x R, keys stand, B x S: B x R x S. None where no layer asks for it."""
        if all(kind["window"] is None for kind in self.config.layer_kinds):
            return None
        return (row[:, :, None] - key[:, None, :]).abs()

    def queries(
        self, beside: tuple[Tensor, Tensor], committed: tuple[Tensor, Tensor], position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and RoPE positions of the queries at `position`, B x Q.

        Under successor seeding the query of x_t is the one a plain autoregressive model would use, x_{t-1} at t-1; the
        learned vector stands for an x_{t-1} that is not yet `committed`. Two-sided seeds have more where x_{t+1} is. What
        stands `beside` are the embeddings of x_{t-1} and x_{t+1}.
        """
        seed = self.scaled(self.query_seed)
        if self.config.seeding == "learned":
            return seed.expand(*position.shape, -1), position
        seed = torch.where(committed[0][..., None], beside[0], seed)
        if self.config.seeding == "two_sided":
            added = self.successor_seed(beside[1]) * self.config.hidden_size**-0.5
            seed = seed + added * committed[1][..., None]
        return seed, (position - 1).clamp(min=0)

    def forward(
        self,
        embedding: Tensor,
        position: Tensor,
        visible: Tensor | None,
        distance: Tensor | None,
        causal: Tensor,
        cache: DynamicCache | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Last hidden states of rows, B x R x D; the last Q of them are query rows, the others enter the cache.

        `visible`, B x R x S, says which keys each row sees, before any window; without it, a row sees the keys up to its own,
        and one that is alone sees all. `distance` is that of rows and keys. `causal`, B x Q, says which queries see the
        tokens before their own and no others. `states` is given what enters each layer, and what is returned.
        """
        kinds, x = kinds_of(self.config, position, visible, distance), embedding
        changed = torch.ones_like(causal[..., None]) if self.config.seeding == "learned" else ~causal[..., None]
        states = [] if states is None else states
        for layer, number in zip(self.layers, self.config.kind_of_layer):
            states.append(x)
            x = layer(x, changed, kinds[number], cache)
        states.append(self.norm(x) / self.config.logit_divisor)
        return states[-1]


class A3ForCausalLM(A3Decoding, PreTrainedModel, GenerationMixin):
    """Logits in any order, generation from left to right by transformers, and in any order with a cache."""

    config_class = A3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
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

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What transformers gives `forward` at each token, which needs no `cache_position` of older versions."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        older, cache = inputs.pop("cache_position", None) is not None, inputs.get("past_key_values")
        if older and cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError("this model has static caches with transformers 5 only; leave out cache_implementation")
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        groups: Tensor | None = None,
        cache: DynamicCache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits B x T x V of `input_ids`, B x T, or of embeddings, B x T x D.

        Without `groups`, as a plain causal model: logits[:, t] predicts token t + 1. With a cache (`past_key_values`, or
        `cache` as newer versions of transformers call it), T counts the tokens that are not in it, and `attention_mask`
        and the keys have S.
        With `groups` (B x T integers, smaller groups come first), the query stream: logits[:, t] predicts token t from
        the tokens of earlier groups. Tokens to be given, not predicted, are best put first, each in a group of its own
        from left to right.

        `labels` may be `input_ids`, with -100 where there is no loss, which is a mean over the others, or their sum over
        `num_items_in_batch`. `attention_mask`, B x S, is 0 at padding; without groups it may be B x 1 x T x S, and say which
        keys each row sees. `hidden_states` are those of the rows that predict.
        Raises ValueError for what cannot be: attention weights, a cache beside groups.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("this model does not return attention weights; leave out output_attentions")
        cache = past_key_values if cache is None else cache
        if groups is not None and (use_cache or cache is not None):
            raise ValueError("groups are for a pass over the whole text; decode with infill(), which has a cache of its own")
        if groups is not None and attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"beside groups, attention_mask has shape B x T; this one has {attention_mask.ndim} axes")
        if use_cache is None:
            use_cache = self.config.use_cache and groups is None and not self.training
        if self.training and self.model.layers[0].gradient_checkpointing:  # layers that run twice would extend it twice
            use_cache, cache = False, None
        if use_cache and cache is None:
            cache = DynamicCache()
        embedding = self.model.scaled(self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        B, T = embedding.shape[:2]
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            attention_mask = torch.ones(B, past + T, device=embedding.device)
        if attention_mask.ndim == 4:  # which rows see which keys: True, or a zero that is added to scores
            real = (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)[:, 0]
            place = torch.arange(max(past + T, real.shape[-1]), device=embedding.device).expand(B, -1)
            row, place = place[:, past : past + T], place[:, : real.shape[-1]]
        else:
            real = attention_mask.bool()
            place = (real.cumsum(-1) - 1).clamp(min=0)
            row = place[:, -T:]
        position = row if position_ids is None else position_ids.expand(B, T)
        places = (row, place)
        if groups is None:
            rows = self._next(embedding, position, real, places)
        else:
            rows = self._any_order(embedding, position, real, places, groups)
        states: list[Tensor] | None = [] if output_hidden_states or self.config.output_hidden_states else None
        hidden = self.model(*rows, cache, states)[:, -T:]
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            predictions, targets = (logits[:, :-1], labels[:, 1:]) if groups is None else (logits, labels)
            how = "mean" if num_items_in_batch is None else "sum"
            loss = functional.cross_entropy(predictions.flatten(0, 1).float(), targets.flatten(), reduction=how)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        hidden_states = None if states is None else tuple(state[:, -T:] for state in states)
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden_states, **{CACHE: cache})

    def _next(self, embedding: Tensor, position: Tensor, real: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
        """What `A3Model.forward` takes first, for rows that predict the next token.

        `real`, B x S or B x T x S, says which keys are tokens, or which of them each row sees; `places` where rows and keys
        stand in the text. A query that stands on the
        token before its own, and is seeded by it, is that token's content row. A learned seed needs a row of its own, which
        sees what that content row sees.
        """
        (B, T), S, (row, key) = position.shape, real.shape[-1], places
        learned = self.config.seeding == "learned"
        causal = torch.ones(B, T if learned else 0, dtype=torch.bool, device=real.device)
        visible = real
        if real.ndim == 2:
            if not learned and T in (1, S) and real.all():
                return embedding, position, None, self.model.distance(row, key), causal
            visible = up_to_their_own(T, S, real.device) & real[:, None]
        if learned:
            embedding = torch.cat([embedding, self.model.scaled(self.model.query_seed).expand_as(embedding)], 1)
            position, row = torch.cat([position, position + 1], 1), torch.cat([row, row + 1], 1)
            visible = torch.cat([visible, visible], 1)
        return embedding, position, visible, self.model.distance(row, key), causal

    def _any_order(
        self, embedding: Tensor, position: Tensor, real: Tensor, places: tuple[Tensor, Tensor], groups: Tensor
    ) -> tuple[Any, ...]:
        """What `A3Model.forward` takes first, for content rows and then the query rows of all tokens."""
        row, key = places
        visible = (groups[:, :, None] >= groups[:, None, :]) & real[:, None]
        if self.config.content == "slot":  # of its own group, what stands before it
            visible &= (groups[:, :, None] > groups[:, None, :]) | (position[:, :, None] >= position[:, None, :])
        query_visible = (groups[:, :, None] > groups[:, None, :]) & real[:, None]
        committed = [(groups.roll(by, 1) < groups) & real.roll(by, 1) for by in (1, -1)]
        committed[0][:, 0] = committed[1][:, -1] = False
        beside = embedding.roll(1, 1), embedding.roll(-1, 1)
        query, query_position = self.model.queries(beside, (committed[0], committed[1]), position)
        earlier = (position[:, None, :] < position[:, :, None]) & real[:, None]
        causal = (query_visible == earlier).all(-1) & query_visible.any(-1)
        return (
            torch.cat([embedding, query], 1),
            torch.cat([position, query_position], 1),
            torch.cat([visible, query_visible], 1),
            self.model.distance(torch.cat([row, row + query_position - position], 1), key),
            causal,
        )
