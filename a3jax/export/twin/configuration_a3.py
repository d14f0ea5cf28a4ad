"""Configuration of an any-order, any-subset (A3) language model of the Llama family."""

from typing import Any

from transformers import PretrainedConfig


class A3Config(PretrainedConfig):
    """Fields are those of a Llama configuration, then the mechanisms by which families differ, then the query stream.

    `layer_kinds` says what kinds of layers there are, and `kind_of_layer` of which each is. A kind has a `window`, within
    which its rows see (None: all), and the rotary embedding's `frequencies` (those of the first numbers of a head; 0 where
    nothing turns) and `attention_factor`. How they were made is in `rope_parameters`.
    """

    model_type = "a3"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 32,
        head_dim: int = 128,
        max_position_embeddings: int = 2048,
        rms_norm_eps: float = 1e-5,
        rope_parameters: dict[str, Any] | None = None,
        layer_kinds: list[dict[str, Any]] | None = None,
        kind_of_layer: list[int] | None = None,
        tie_word_embeddings: bool = False,
        a3_family: str = "llama",
        qkv_bias: bool = False,
        qkv_limit: float | None = None,  # queries, keys and values are cut off at it on both sides
        query_key_norm: str = "none",  # "head": over each head; "full": over all heads at once
        norm: str = "rms",  # "rms_offset": multiplies with 1 + weight; "layer": LayerNorm without weights
        pre_norm: bool = True,  # normalize the inputs of attention and MLP
        post_norm: bool = False,  # normalize their outputs
        output_bias: bool = False,  # of attention
        mlp_bias: bool = False,
        activation: str = "silu",  # of the MLP's gate; or "gelu_tanh", "gelu_sigmoid"
        gate_limit: float | None = None,  # gates are cut off above it, what they multiply on both sides, and that gets 1 more
        embedding_scale: float = 1.0,  # what embeddings are multiplied with
        residual_scale: float = 1.0,  # what the outputs of attention and MLP are multiplied with
        attention_scale: float | None = None,  # what scores are multiplied with; None: head_dim^-1/2
        attention_cap: float | None = None,  # scores are bent to stay within it
        attention_sinks: bool = False,  # a logit of each head takes a share of each row's softmax, and has no value
        logit_divisor: float = 1.0,
        logit_cap: float | None = None,
        num_experts: int = 0,  # of each layer's feed-forward, `intermediate_size` wide each; 0: it is one dense MLP
        num_experts_per_tok: int = 0,  # how many of them a row goes to
        expert_biases: bool = False,  # of experts and their router
        norm_topk_prob: bool = True,  # whether the router's weights of these add up to 1
        seeding: str = "successor",  # a query is x_{t-1} where known; "two_sided": x_{t+1} adds to it; "learned": a vector
        content: str = "group",  # up to where content sees: the end of its "group", or its own "slot"
        adapter_rank: int = 0,  # inner width of low-rank changes to the query stream's weights; 0: there are none
        unfillable: list[list[int]] | None = None,  # [first, last] ranges of tokens that never stand in a blank
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ):
        special = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **special, **kwargs)
        self.use_cache = use_cache
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = rope_parameters or {"rope_type": "default", "rope_theta": 10_000.0}
        rates = [10_000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        self.layer_kinds = layer_kinds or [{"window": None, "frequencies": rates, "attention_factor": 1.0}]
        self.kind_of_layer = kind_of_layer or [0] * num_hidden_layers
        self.a3_family = a3_family
        self.qkv_bias = qkv_bias
        self.qkv_limit = qkv_limit
        self.query_key_norm = query_key_norm
        self.norm = norm
        self.pre_norm = pre_norm
        self.post_norm = post_norm
        self.output_bias = output_bias
        self.mlp_bias = mlp_bias
        self.activation = activation
        self.gate_limit = gate_limit
        self.embedding_scale = embedding_scale
        self.residual_scale = residual_scale
        self.attention_scale = attention_scale
        self.attention_cap = attention_cap
        self.attention_sinks = attention_sinks
        self.logit_divisor = logit_divisor
        self.logit_cap = logit_cap
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.expert_biases = expert_biases
        self.norm_topk_prob = norm_topk_prob
        self.seeding = seeding
        self.content = content
        self.adapter_rank = adapter_rank
        self.unfillable = unfillable or []
