"""The two streams of one window by the book: float64 numpy, original token order, full masks, one head at a time.

Nothing here shares code or layout with the project: no slots, no key ranges, no rows.
"""

import math

import numpy as np

from a3jax.config import ModelConfig


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
        content.append(params["embedding"][tokens[t]])
        if config.seeding == "learned":
            query.append(params["query_seed"])
            query_position.append(position[t])
        else:
            known = position[t] > 0 and query_mask[t, t - 1]
            query.append(params["embedding"][tokens[t - 1]] if known else params["query_seed"])
            query_position.append(max(position[t] - 1, 0))
    # A query that sees all tokens of its document before its own and no others is the source model's.
    source_asks = (query_mask == (ahead & (segments[:, None] == segments[None]))).all(1) & query_mask.any(1)
    source_asks &= (config.adapter_stream, config.seeding) == ("query", "successor")
    content, query, query_position = np.array(content), np.array(query), np.array(query_position)

    for n in range(config.layers):
        weights = {k: np.asarray(v, np.float64)[n] for k, v in params["blocks"].items()}
        for_query = with_adapters(weights)
        w = for_query if config.adapter_stream == "both" else weights
        keys, values = _keys_values(config, w, content, position)
        plain, query = (_layer(config, w, query, query_position, query_mask, keys, values) for w in (weights, for_query))
        content = _layer(config, w, content, position, content_mask, keys, values)
        query = np.where(source_asks[:, None], plain, query)
    head = params["embedding" if config.tied_head else "head"]
    return tuple(_norm(x, params["final_norm"], config.norm_eps) @ head.T for x in (content, query))


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
        x = _layer(config, w, x, position, sees, *_keys_values(config, w, x, position))
    head = params["embedding" if config.tied_head else "head"]
    return _norm(x, params["final_norm"], config.norm_eps) @ head.T


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


def _layer(config, w, x, position, mask, keys, values):
    eps = config.norm_eps
    inputs = x if config.post_norm else _norm(x, w["attention_norm"], eps)
    out = np.zeros_like(x)
    queries = np.einsum("td,dhe->the", inputs, w["query"]) + w.get("query_bias", 0.0)
    queries = _rope(config, _head_norm(config, queries, w.get("query_norm")), position)
    for head in range(config.query_heads):
        shared = head // (config.query_heads // config.kv_heads)
        for t in range(len(x)):
            seen = np.flatnonzero(mask[t])
            if len(seen) == 0:
                continue
            scores = keys[seen, shared] @ queries[t, head] / math.sqrt(config.head_width)
            weights = np.exp(scores - scores.max())
            out[t] += (weights / weights.sum()) @ values[seen, shared] @ w["output"][head]
    x = x + (_norm(out, w["attention_norm"], eps) if config.post_norm else out)
    inputs = x if config.post_norm else _norm(x, w["mlp_norm"], eps)
    out = _mlp(inputs, w) if config.experts is None else np.stack([_experts(config.experts, row, w) for row in inputs])
    return x + (_norm(out, w["mlp_norm"], eps) if config.post_norm else out)


def _mlp(inputs, w):
    gate = inputs @ w["gate"]
    return (gate / (1 + np.exp(-gate)) * (inputs @ w["up"])) @ w["down"]


def _experts(config, row, w):
    """One row through the experts that its router likes best, by their probabilities."""
    probability = np.exp(log_softmax(row @ w["router"]))
    best = np.argsort(-probability)[: config.active]
    shares = probability[best] / (probability[best].sum() if config.normalized else 1)
    return sum(s * _mlp(row, {name: w[name][x] for name in ("gate", "up", "down")}) for s, x in zip(shares, best))


def _keys_values(config, w, content, position):
    inputs = content if config.post_norm else _norm(content, w["attention_norm"], config.norm_eps)
    keys = np.einsum("td,dke->tke", inputs, w["key"]) + w.get("key_bias", 0.0)
    values = np.einsum("td,dke->tke", inputs, w["value"]) + w.get("value_bias", 0.0)
    return _rope(config, _head_norm(config, keys, w.get("key_norm")), position), values


def _norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _head_norm(config, x, weight):
    if config.query_key_norm == "full":
        flat = _norm(x.reshape(len(x), -1), weight.reshape(-1), config.norm_eps)
        return flat.reshape(x.shape)
    return _norm(x, weight, config.norm_eps) if config.query_key_norm == "head" else x


def _rope(config, x, position):
    half = config.head_width // 2
    result = np.empty_like(x)
    for i in range(half):
        rate = config.rope_theta ** (-i / half)
        if (scaling := config.rope_scaling) is not None:
            wave = 2 * math.pi / rate
            if wave > scaling.original_context / scaling.low_freq_factor:
                rate /= scaling.factor
            elif wave > scaling.original_context / scaling.high_freq_factor:
                blend = scaling.original_context / wave - scaling.low_freq_factor
                blend /= scaling.high_freq_factor - scaling.low_freq_factor
                rate = (1 - blend) * rate / scaling.factor + blend * rate
        cos, sin = np.cos(position * rate)[:, None], np.sin(position * rate)[:, None]
        result[..., i] = x[..., i] * cos - x[..., i + half] * sin
        result[..., i + half] = x[..., i + half] * cos + x[..., i] * sin
    return result
