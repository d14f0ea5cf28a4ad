"""GGUF's tokenizer metadata and `tokenizer.json`, both ways.

Two kinds of tokenizer, by the names of llama.cpp: "gpt2" is a byte-level BPE, which lists its merges and names the way
it splits text before; "llama" is a SentencePiece BPE, which gives every token a score instead: of all pairs of
neighbours that together are a token, the one with the highest score is merged first.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from a3jax.config import ModelConfig
from a3jax.data.tokenizer_files import around, open_tokenizer, settings_of, token_of
from a3jax.errors import UserError, first_line
from a3jax.weights.gguf.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""
_GGML = "tokenizer.ggml."
_SPACE = "▁"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Roles of tokens in `tokenizer_config.json` -> in GGUF."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _BEHIND = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_WORDS = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_BEHIND}|{_BEFORE}{_UPPER}+{_LOWER}*{_BEHIND}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words end where a small letter is before a capital one."""


def _parts(pattern: str) -> pre_tokenizers.Sequence:
    """Words with the space before them, numbers of some digits, and what is left, as bytes."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


@dataclass(frozen=True)
class Split:
    """How a byte-level BPE prepares and splits text before merging."""

    names: tuple[str, ...]
    """GGUF's; the first is written."""
    splitter: pre_tokenizers.PreTokenizer
    normalizer: normalizers.Normalizer | None = None
    whole_words: bool = False
    """Whether a word that is a token is taken as it is, even where merges do not lead to it."""
    starts: bool = False
    """Whether text begins with the start token where the file does not say."""


_GPT2 = pre_tokenizers.ByteLevel(False, use_regex=True)
SPLITS = (
    Split(("gpt-2",), _GPT2),
    Split(("smollm", "refact", "starcoder"), pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])),
    Split(("llama-bpe", "llama3", "llama-v3"), _parts(_WORDS % "{1,3}"), whole_words=True, starts=True),
    Split(("dbrx", "smaug-bpe"), _parts(_WORDS % "{1,3}")),
    Split(("gpt-4o",), _parts(_CASED_WORDS)),
    Split(("qwen2",), _parts(_WORDS % ""), normalizers.NFC()),
)


def to_files(metadata: Metadata, context: int) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`. Raises `UserError` for a tokenizer that is in neither kind's table."""
    tokens, roles = metadata.need(f"{_GGML}tokens", list), {role: metadata.token(key) for role, key in _ROLES.items()}
    try:
        tokenizer = _build(metadata, tokens, roles)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{metadata.path}: the tokenizer's metadata do not fit together ({first_line(error)})") from None
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    settings |= {f"{role}_token": tokens[token] for role, token in roles.items() if token is not None}
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _build(metadata: Metadata, tokens: list[str], roles: dict[str, int | None]) -> Tokenizer:
    types = metadata.get(f"{_GGML}token_type", [NORMAL] * len(tokens))
    kind, name = metadata.get(f"{_GGML}model"), metadata.get(f"{_GGML}pre")
    split = next((split for split in SPLITS if name in split.names), None)
    if kind == "llama":
        tokenizer, starts = _sentencepiece(metadata, tokens, types), True
    elif kind == "gpt2" and split:
        tokenizer, starts = _byte_level(metadata, tokens, types, split), split.starts
    else:
        raise UserError(f"{metadata.path}: tokenizer '{kind}/{name}' cannot be rebuilt; import the model's folder")
    added = [(AddedToken(token, normalized=False), of) for token, of in zip(tokens, types)]
    tokenizer.add_special_tokens([token for token, of in added if of in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([token for token, of in added if of == USER_DEFINED])
    around = {"bos": metadata.get(f"{_GGML}add_bos_token", starts), "eos": metadata.get(f"{_GGML}add_eos_token", False)}
    before, after = ([(tokens[i], i)] if around[role] and (i := roles[role]) is not None else [] for role in around)
    if before or after:
        single, second = ([token for token, _ in (*before, (text, None), *after)] for text in ("$A", "$B"))
        tokenizer.post_processor = processors.TemplateProcessing(single, single + second, before + after)
    return tokenizer


def to_metadata(files: dict[str, bytes], config: ModelConfig) -> dict[str, Any]:
    """The metadata of which `to_files` makes an equal tokenizer: name -> text, number, truth value, or a list of them.

    Raises `UserError` for a tokenizer that GGUF cannot describe, or not in a way that is in the tables.
    """
    tokenizer, settings = open_tokenizer(files, "tokenizer.json"), settings_of(files, "tokenizer.json")
    described = json.loads(tokenizer.to_str())
    model, added = described["model"], tokenizer.get_added_tokens_decoder()
    if model["type"] != "BPE":
        raise UserError(f"a tokenizer of the type {model['type']} cannot be written as GGUF, only BPE")
    for token in added.values():
        if token.lstrip or token.rstrip or token.single_word:
            raise UserError(f"token {token.content!r} takes in the space around it or stands alone, which GGUF cannot say")
    types = [_type(i, tokenizer.id_to_token(i), added, model) for i in range(config.vocab)]
    tokens = [tokenizer.id_to_token(i) or f"[PAD{i}]" for i in range(config.vocab)]
    result: dict[str, Any] = {"tokens": tokens, "token_type": types}
    if model["byte_fallback"]:
        result |= _sentencepiece_metadata(described, tokens, types)
    else:
        result |= _byte_level_metadata(described)
    ids = {"bos": config.start_token, "eos": config.end_tokens[0] if config.end_tokens else None}
    ids |= {role: token_of(tokenizer, settings.get(f"{role}_token")) for role in ("unk", "pad")}
    result |= {f"{_ROLES[role]}_token_id": token for role, token in ids.items() if token is not None}
    result |= _around(tokenizer, ids["bos"], ids["eos"])
    result = {_GGML + name: value for name, value in result.items()}
    template = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else settings.get("chat_template")
    return result | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def _type(token_id: int, token: str | None, added: dict[int, AddedToken], model: dict[str, Any]) -> int:
    if token is None:
        return UNUSED
    if model["byte_fallback"] and token == model["unk_token"]:
        return UNKNOWN
    if token_id in added:
        return CONTROL if added[token_id].special else USER_DEFINED
    return BYTE if model["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", token) else NORMAL


def _around(tokenizer: Tokenizer, start: int | None, end: int | None) -> dict[str, bool]:
    """Whether the tokenizer puts the start and the end token around text."""
    before, after = around(tokenizer)
    if before in ([], [start]) and after in ([], [end]):
        return {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    raise UserError("the tokenizer puts other tokens around text than the model's start and end, which GGUF cannot say")


def _byte_level(metadata: Metadata, tokens: list[str], types: list[int], split: Split) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in metadata.need(f"{_GGML}merges", list)]
    vocab = {token: i for i, (token, of) in enumerate(zip(tokens, types)) if of != UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.whole_words))
    tokenizer.pre_tokenizer, tokenizer.normalizer = split.splitter, split.normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_metadata(described: dict[str, Any]) -> dict[str, Any]:
    model, prepares = described["model"], _prepares(described)
    splits = [split for split in SPLITS if prepares == _prepares(_bare(split.normalizer, split.splitter))]
    if not splits:
        steps = " and ".join(step["type"] for step in prepares[1]) or "nothing"
        known = ", ".join(split.names[0] for split in SPLITS)
        raise UserError(f"the tokenizer's way of splitting text ({steps}) is none that GGUF is known to name ({known})")
    split = next((split for split in splits if split.whole_words == model["ignore_merges"]), None)
    if split is None:
        raise UserError(f"the tokenizer splits text as '{splits[0].names[0]}', but ignore_merges is {model['ignore_merges']}")
    return {"model": "gpt2", "pre": split.names[0], "merges": [" ".join(merge) for merge in model["merges"]]}


def _sentencepiece(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = metadata.need(f"{_GGML}scores", list)
    plain = {token: score for token, score, of in zip(tokens, scores, types) if of == NORMAL}
    vocab = {token: i for i, (token, of) in enumerate(zip(tokens, types)) if of != UNUSED}
    unknown = next((token for token, of in zip(tokens, types) if of == UNKNOWN), None)
    model = models.BPE(vocab, _merges(plain), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = metadata.get(f"{_GGML}add_space_prefix", True)
    tokenizer.normalizer = _SPACES[prefix]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _sentencepiece_metadata(described: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    prepares = _prepares(described)
    known = {prefix: [_prepares(_bare(spaces, split)) for split in (None, _AT_SPACES)] for prefix, spaces in _SPACES.items()}
    prefix = next((prefix for prefix, ways in known.items() if prepares in ways), None)
    if prefix is None:
        raise UserError("the tokenizer does not treat spaces as SentencePiece does, which is all that GGUF can say")
    plain = {token for token, of in zip(tokens, types) if of == NORMAL}
    merges = [(a, b) for a, b in described["model"]["merges"] if {a, b, a + b} <= plain]
    scores = _scores(merges)
    shared = Counter(scores.values())
    mixed = any(shared[score] > 1 and token.strip(_SPACE) for token, score in scores.items())
    scores = dict.fromkeys(plain, -1.0 - len(merges)) | scores
    if mixed or set(_merges(scores)) != set(merges):
        raise UserError("the tokenizer's merges do not follow from scores of its tokens, which is all that GGUF can say")
    return {
        "model": "llama",
        "pre": "default",
        "scores": [scores.get(token, 0.0) for token in tokens],
        "add_space_prefix": prefix,
    }


_SPACES = {
    True: normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]),
    False: normalizers.Replace(" ", _SPACE),
}
"""What SentencePiece does to spaces, with and without one put before the text."""
_AT_SPACES = pre_tokenizers.Split(" ", "merged_with_previous")
"""What Gemma's tokenizers do then, when no space is left."""


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that together are a token, by falling score; of one token's the longest beginning first."""
    best_first = sorted(scores, key=lambda token: -scores[token])
    pairs = ((token[:i], token[i:]) for token in best_first for i in range(len(token) - 1, 0, -1))
    return [(a, b) for a, b in pairs if a in scores and b in scores]


def _scores(merges: list[tuple[str, str]]) -> dict[str, float]:
    """Scores that give merges in this order; tokens whose merges are mixed share one, as runs of spaces do in Llama 2."""
    last = {a + b: i for i, (a, b) in enumerate(merges)}
    scores: dict[str, float] = {}
    score, end = 0.0, -1
    for i, (a, b) in enumerate(merges):
        if i > end:
            score -= 1
        end = max(end, last[a + b])
        scores[a + b] = score
    return scores


def _bare(normalizer: normalizers.Normalizer | None, splitter: pre_tokenizers.PreTokenizer | None) -> dict[str, Any]:
    """The description of a tokenizer that has only these."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return json.loads(tokenizer.to_str())


def _prepares(described: dict[str, Any]) -> tuple[list[dict[str, Any]], ...]:
    """All that happens to text before merging."""
    return _steps(described["normalizer"]), _steps(described["pre_tokenizer"])


def _steps(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list, without what only concerns offsets into the text."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for part in node.get("normalizers") or node["pretokenizers"] for step in _steps(part)]
    return [{key: value for key, value in node.items() if key != "trim_offsets"}]
