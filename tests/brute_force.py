"""The two streams of one window by the book: float64 numpy, original token order, full masks, one head at a time.

Nothing here shares code or layout with the project, but for the frequencies of stretched rotary embeddings: no slots, no key
ranges, no rows.
"""

import math

import numpy as np

from a3jax.config import ModelConfig
from a3jax.model.rope import attention_factor, frequencies


def document_start(segments):
    """For each token the index of its document's first token."""
    return np.array([next(i for i in range(len(segments)) if segments[i] == s) for s in segments])


def masks(groups, segments, content="group"):
    """L x L: what content and what query of row t see at column s; `content` is that of the model."""
    same = (segments[:, None] == segments[None]) & (segments[:, None] != 0)
    earlier, own = same & (groups[None] < groups[:, None]), same & (groups[None] == groups[:, None])
    left = np.arange(len(groups))[None] <= np.arange(len(groups))[:, None]
    return earlier | (own & left if content == "slot" else own), earlier


def two_streams(config: ModelConfig, params: dict, tokens, groups, segments):
    """Logits L x V of (content, query) in original order; `params` is the nested dict of the network's arrays."""
    params = {k: np.asarray(v, np.float64) if k != "blocks" else v for k, v in params.items()}
    length = len(tokens)
    ahead = np.arange(length)[None] < np.arange(length)[:, None]
    position = np.arange(length) - document_start(segments)
    content_mask, query_mask = masks(groups, segments, config.content)
    content, query, query_position = [], [], []
    for t in range(length):
        content.append(config.embedding_scale * params["embedding"][tokens[t]])
        if config.seeding == "learned":
            query.append(config.embedding_scale * params["query_seed"])
            query_position.append(position[t])
        else:
            known = position[t] > 0 and query_mask[t, t - 1]
            seed = params["embedding"][tokens[t - 1]] if known else params["query_seed"]
            if config.seeding == "two_sided" and t + 1 < length and query_mask[t, t + 1]:
                seed = seed + params["embedding"][tokens[t + 1]] @ params["successor_seed"] / math.sqrt(config.width)
            query.append(config.embedding_scale * seed)
            query_position.append(max(position[t] - 1, 0))
    # A query that sees all tokens of its document before its own and no others is the source model's.
    source_asks = (query_mask == (ahead & (segments[:, None] == segments[None]))).all(1) & query_mask.any(1)
    source_asks &= config.adapter_stream == "query" and config.seeding != "learned"
    content, query, query_position = np.array(content), np.array(query), np.array(query_position)

    for n in range(config.layers):
        weights = {k: np.asarray(v, np.float64)[n] for k, v in params["blocks"].items()}
        for_query = with_adapters(weights)
        w = for_query if config.adapter_stream == "both" else weights
        keys, values = _keys_values(config, w, content, position, n)
        plain, query = (
            _layer(config, w, query, query_position, query_mask, keys, values, position, n) for w in (weights, for_query)
        )
        content = _layer(config, w, content, position, content_mask, keys, values, position, n)
        query = np.where(source_asks[:, None], plain, query)
    return tuple(_logits(config, params, x) for x in (content, query))


def masked_stream(config: ModelConfig, params: dict, tokens, masked, sees=None):
    """Logits L x V of one stream over one document; masked tokens are the query seed. Those of row t are of token t + 1.

    Rows see all of the document, or what `sees`, L x L, says.
    """
    params = {k: np.asarray(v, np.float64) if k != "blocks" else v for k, v in params.items()}
    x = np.where(np.asarray(masked)[:, None], params["query_seed"], params["embedding"][np.asarray(tokens)])
    position = np.arange(len(tokens))
    sees = np.ones((len(tokens), len(tokens)), bool) if sees is None else sees
    for n in range(config.layers):
        w = with_adapters({k: np.asarray(v, np.float64)[n] for k, v in params["blocks"].items()})
        x = _layer(config, w, x, position, sees, *_keys_values(config, w, x, position, n), position, n)
    return _logits(config, params, x)


def block_log_probs(config: ModelConfig, params: dict, tokens, masked, block_of):
    """log p, L x V, of every token of a document in block diffusion, by place; `block_of` numbers the places' blocks.

    One pass for each block, over the clean blocks before it and its own with its tokens masked.
    """
    block_of = np.asarray(block_of)
    found = np.zeros((len(tokens), config.vocab))
    for number in np.unique(block_of):
        count = int((block_of <= number).sum())
        blocks, here = block_of[:count], block_of[:count] == number
        logits = masked_stream(
            config, params, tokens[:count], np.asarray(masked)[:count] & here, blocks[None] <= blocks[:, None]
        )
        places = np.flatnonzero(here & (np.arange(count) > 0))
        found[places] = log_softmax(logits)[places - 1]
    return found


def with_adapters(weights):
    """Weights with the product of their adapters' two factors added, where they have some."""
    names = [name for name in weights if f"{name}_in" in weights]
    return weights | {name: weights[name] + np.tensordot(weights[f"{name}_in"], weights[f"{name}_out"], 1) for name in names}


def log_softmax(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def _logits(config, params, x):
    head = params["embedding" if config.tied_head else "head"]
    return _bent(_norm(config, x, params.get("final_norm")) @ head.T / config.logit_divisor, config.logit_cap)


def _bent(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def _layer(config, w, x, position, mask, keys, values, key_position, number):
    inputs = _norm(config, x, w.get("attention_norm")) if config.pre_norm else x
    out = np.zeros_like(x) + w.get("output_bias", 0.0)
    queries = np.einsum("td,dhe->the", inputs, w["query"]) + w.get("query_bias", 0.0)
    queries = _rope(config, _clipped(config, _head_norm(config, queries, w.get("query_norm"))), position, number)
    window = config.layer_kinds[number].window
    scale = 1 / math.sqrt(config.head_width) if config.attention_scale is None else config.attention_scale
    for head in range(config.query_heads):
        shared = head // (config.query_heads // config.kv_heads)
        for t in range(len(x)):
            near = True if window is None else abs(key_position - position[t]) < window
            seen = np.flatnonzero(mask[t] & near)
            if len(seen) == 0:
                continue
            scores = _bent(keys[seen, shared] @ queries[t, head] * scale, config.attention_cap)
            weights = np.exp(scores)
            total = weights.sum() + (np.exp(w["sinks"][head]) if config.attention_sinks else 0)
            out[t] += (weights / total) @ values[seen, shared] @ w["output"][head]
    x = x + config.residual_scale * (_norm(config, out, w.get("attention_post_norm")) if config.post_norm else out)
    inputs = _norm(config, x, w.get("mlp_norm")) if config.pre_norm else x
    out = _mlp(config, inputs, w) if config.experts is None else np.stack([_experts(config, row, w) for row in inputs])
    return x + config.residual_scale * (_norm(config, out, w.get("mlp_post_norm")) if config.post_norm else out)


def _mlp(config, inputs, w):
    gate, up = (inputs @ w[name] + w.get(f"{name}_bias", 0.0) for name in ("gate", "up"))
    if config.gate_limit is not None:
        gate, up = np.minimum(gate, config.gate_limit), 1 + np.maximum(-config.gate_limit, np.minimum(config.gate_limit, up))
    if config.activation in ("silu", "gelu_sigmoid"):
        gate = gate / (1 + np.exp(-gate * (1 if config.activation == "silu" else 1.702)))
    else:
        gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return (gate * up) @ w["down"] + w.get("down_bias", 0.0)


def _experts(config, row, w):
    """One row through the experts that its router likes best, by their probabilities."""
    probability = np.exp(log_softmax(row @ w["router"] + w.get("router_bias", 0.0)))
    best = np.argsort(-probability)[: config.experts.active]
    shares = probability[best] / (probability[best].sum() if config.experts.normalized else 1)
    names = [name for part in ("gate", "up", "down") for name in (part, f"{part}_bias") if name in w]
    return sum(s * _mlp(config, row, {name: w[name][x] for name in names}) for s, x in zip(shares, best))


def _keys_values(config, w, content, position, number):
    inputs = _norm(config, content, w.get("attention_norm")) if config.pre_norm else content
    keys = np.einsum("td,dke->tke", inputs, w["key"]) + w.get("key_bias", 0.0)
    values = np.einsum("td,dke->tke", inputs, w["value"]) + w.get("value_bias", 0.0)
    keys = _rope(config, _clipped(config, _head_norm(config, keys, w.get("key_norm"))), position, number)
    return keys, _clipped(config, values)


def _clipped(config, x):
    return x if config.qkv_limit is None else np.minimum(np.maximum(x, -config.qkv_limit), config.qkv_limit)


def _norm(config, x, weight):
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps)
    return x if weight is None else x * (1 + weight if config.norm == "rms_offset" else weight)


def _head_norm(config, x, weight):
    if config.query_key_norm == "full":
        flat = _norm(config, x.reshape(len(x), -1), None if weight is None else weight.reshape(-1))
        return flat.reshape(x.shape)
    return _norm(config, x, weight) if config.query_key_norm == "head" else x


def _rope(config, x, position, number):
    """Frequencies are those of `a3jax.model.rope`, which is held against transformers' own."""
    rope = config.layer_kinds[number].rope
    if rope is None:
        return x
    half = config.turning // 2
    result = x.copy()
    rates = frequencies(config, rope) if rope.scaling else rope.theta ** (-np.arange(half) / half)
    for i, rate in enumerate(rates):
        cos, sin = (attention_factor(rope) * turn(position * float(rate))[:, None] for turn in (np.cos, np.sin))
        result[..., i] = x[..., i] * cos - x[..., i + half] * sin
        result[..., i + half] = x[..., i + half] * cos + x[..., i] * sin
    return result
