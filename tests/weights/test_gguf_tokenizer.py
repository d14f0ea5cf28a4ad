"""GGUF's tokenizers: metadata written here by hand, read by us and by transformers, and written back as they were."""

import ast
import itertools
import json
from pathlib import Path

import gguf
import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.weights.gguf.metadata import Metadata, open_gguf
from a3jax.weights.gguf.tokenizer import to_files, to_metadata

SOURCE = Path(ast.__file__).read_text()
TEXTS = (
    "Été 2024: naïve café — 12345 tokens,\n\n\tdef f(x):\n        return x  # don't WE'LL\r\n   🙂<|end|> 中文 it's   ",
    "a<think>b</think><|start|><|end|>  c",
    "\n\n  \t 1 22 333 4444 55555²½Ⅷ ...!?--''\"\" _under_score__ ThisIsCamelCase",
    "e\u0301te\u0301",  # not in normal form
    SOURCE[:20_000],
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {  # as the makers of these tokenizers publish them
    "gpt-2": (None, pre_tokenizers.ByteLevel(False), False),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]), False),
    "llama-bpe": (None, _WORDS.format(r"\p{N}{1,3}"), True),
    "dbrx": (None, _WORDS.format(r"\p{N}{1,3}"), False),
    "gpt-4o": (None, _CASED, False),
    "qwen2": (normalizers.NFC(), _WORDS.format(r"\p{N}"), False),
}
ADDED = [("<|start|>", True), ("<|end|>", True), ("<think>", False), ("</think>", False)]


def _config(tokenizer: Tokenizer, start: str, end: str, padding: int = 3) -> ModelConfig:
    """A model that goes with a tokenizer and has some embeddings more."""
    sizes = {"width": 32, "ff_width": 48, "layers": 1, "query_heads": 4, "kv_heads": 2, "head_width": 8, "context": 64}
    vocab, ids = tokenizer.get_vocab_size() + padding, (tokenizer.token_to_id(start), tokenizer.token_to_id(end))
    return ModelConfig("llama", vocab, **sizes, start_token=ids[0], end_tokens=ids[1:])


def _trained(name: str) -> Tokenizer:
    """A small byte-level tokenizer that splits text as published under this name."""
    normalizer, split, whole_words = PUBLISHED[name]
    if isinstance(split, str):
        pattern = pre_tokenizers.Split(Regex(split), "isolated")
        split = pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer, tokenizer.normalizer, tokenizer.decoder = split, normalizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = [SOURCE, "1234 555 12345 22 ²½ " * 50, "été naïve don't we'll IT'S 中文 🙂 " * 50]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    for token, special in ADDED:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
    return tokenizer


def _byte_level_metadata(name: str, tokenizer: Tokenizer, vocab: int) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    ids, added = {i: token for token, i in tokenizer.get_vocab().items()}, dict(ADDED)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [ids.get(i, f"[PAD{i}]") for i in range(vocab)],
        "tokenizer.ggml.token_type": [
            5 if i not in ids else 3 if added.get(ids[i]) else 4 if ids[i] in added else 1 for i in range(vocab)
        ],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.token_to_id("<|start|>"),
        "tokenizer.ggml.eos_token_id": tokenizer.token_to_id("<|end|>"),
        "tokenizer.ggml.add_bos_token": name == "llama-bpe",
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }


def _write(path: Path, values: dict) -> Metadata:
    """A GGUF file of metadata alone."""
    writer = gguf.GGUFWriter(path, "llama")
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    for key, value in values.items():
        add[type(value)](key, value)
    for key in ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return Metadata(path, open_gguf(path))


def _rebuilt(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_buffer(files["tokenizer.json"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_tokenizers(name, tmp_path):
    trained = _trained(name)
    start = trained.token_to_id("<|start|>")
    if name == "llama-bpe":
        trained.post_processor = processors.TemplateProcessing("<|start|> $A", "<|start|> $A $B", [("<|start|>", start)])
    config = _config(trained, "<|start|>", "<|end|>")
    values = _byte_level_metadata(name, trained, config.vocab)
    files = to_files(_write(tmp_path / "model.gguf", values), 64)
    ours = _rebuilt(files)
    for text in TEXTS:
        assert ours.encode(text).ids == trained.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == trained.decode(
            trained.encode(text).ids, False
        )
    assert ours.get_vocab() == trained.get_vocab()
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"], settings["chat_template"]) == (
        "<|start|>",
        "<|end|>",
        "{{ messages }}",
    )

    if name not in ("smollm", "dbrx"):  # which transformers reads as gpt-2
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        for text in (text for text in TEXTS if name != "qwen2" or text == ours.normalizer.normalize_str(text)):
            plain = [tokenizer(text, add_special_tokens=False) for tokenizer in (ours.encode, reference)]
            assert plain[0].ids == plain[1].input_ids

    theirs = {
        "tokenizer.json": trained.to_str().encode(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
    }
    assert to_metadata(theirs, config) == values
    assert to_metadata(files, config) == values


def test_what_llama_cpp_does_where_the_file_is_silent(tmp_path):
    for name, starts in [("llama-bpe", True), ("gpt-2", False)]:
        trained = _trained(name)
        values = _byte_level_metadata(name, trained, trained.get_vocab_size())
        del values["tokenizer.ggml.add_bos_token"]
        ids = _rebuilt(to_files(_write(tmp_path / name, values), 64)).encode("a").ids
        assert (ids[0] == trained.token_to_id("<|start|>")) == starts


SPECIAL = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<think>", 4)]


@pytest.fixture(scope="module")
def sentencepiece() -> dict:
    """The metadata of a SentencePiece tokenizer: special tokens, bytes, tokens by falling score, letters."""
    learner = Tokenizer(models.BPE())
    text = "▁" + SOURCE.replace("<", "").replace(" ", "▁")
    learner.train_from_iterator([text], trainers.BpeTrainer(vocab_size=700, show_progress=False, max_token_length=8))
    merged = dict.fromkeys(a + b for a, b in json.loads(learner.to_str())["model"]["merges"])
    letters = sorted({letter for token in merged for letter in token} | set("</>kns"))
    tokens = [*SPECIAL, *((f"<0x{i:02X}>", 6) for i in range(256)), *((token, 1) for token in [*merged, *letters])]
    first = len(SPECIAL) + 256
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.scores": [0.0] * first + [-float(i) for i in range(len(tokens) - first)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _by_scores(values: dict, text: str) -> list[int]:
    """SentencePiece by its definition: merge the neighbours whose union scores highest, the leftmost first, until none is."""
    kinds = zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"], values["tokenizer.ggml.scores"])
    score = {token: score for token, kind, score in kinds if kind == 1}
    pieces = list(text.replace(" ", "▁"))
    while True:
        unions = [(-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in score]
        if not unions:
            break
        i = min(unions)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"])}
    split = [[piece] if piece in ids else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces]
    return [ids[piece] for pieces in split for piece in pieces]


PLAIN = ("def f(x):  return x", "Été 2024 🙂 中文\n\n\ttabs", " two  spaces first", "", "<thinker>", SOURCE[2000:4000])


def test_sentencepiece_tokenizers(sentencepiece, tmp_path):
    files = to_files(_write(tmp_path / "model.gguf", sentencepiece), 64)
    ours = _rebuilt(files)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in PLAIN:
        ids = ours.encode(text).ids
        assert ids == [1] + (_by_scores(sentencepiece, " " + text) if text else [])
        assert ours.decode(ids) == text
        if not text.startswith(" "):  # transformers puts no space before a space, SentencePiece does
            assert ids == reference(text).input_ids
    assert ours.encode("a<think>b</s>").ids[-1] == 2
    assert sentencepiece["tokenizer.ggml.tokens"].index("<think>") in ours.encode("a<think>b").ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizers_come_back(prefix, sentencepiece, tmp_path):
    values = sentencepiece | {"tokenizer.ggml.add_space_prefix": prefix}
    files = to_files(_write(tmp_path / "a.gguf", values), 64)
    if not prefix:  # as Gemma's, which then split at spaces, of which none is left
        described = json.loads(files["tokenizer.json"])
        described["pre_tokenizer"] = json.loads(pre_tokenizers.Split(" ", "merged_with_previous").__getstate__())
        files["tokenizer.json"] = json.dumps(described).encode()
    written = to_metadata(files, _config(_rebuilt(files), "<s>", "</s>", padding=2))
    assert written.pop("tokenizer.ggml.add_bos_token")
    assert not written.pop("tokenizer.ggml.add_eos_token")
    assert written.pop("tokenizer.ggml.tokens") == [
        *values["tokenizer.ggml.tokens"],
        *(f"[PAD{len(values['tokenizer.ggml.tokens']) + i}]" for i in range(2)),
    ]
    again = to_files(_write(tmp_path / "b.gguf", written | {"tokenizer.ggml.tokens": values["tokenizer.ggml.tokens"]}), 64)
    for text in (*PLAIN, "<s>a</s> b<think>c"):
        assert _rebuilt(again).encode(text).ids == _rebuilt(files).encode(text).ids
    for name, value in values.items():
        if name.split(".")[-1] not in ("tokens", "scores", "token_type"):
            assert written[name] == value


def test_runs_of_spaces_may_share_a_score(sentencepiece, tmp_path):
    """As in Llama 2, whose published merges are sorted by score and then by length."""
    tokens, scores = sentencepiece["tokenizer.ggml.tokens"], list(sentencepiece["tokenizer.ggml.scores"])
    runs = [i for i, token in enumerate(tokens) if set(token) == {"▁"}]
    for i in runs:
        scores[i] = -1e9
    files = to_files(_write(tmp_path / "a.gguf", sentencepiece | {"tokenizer.ggml.scores": scores}), 64)
    described = json.loads(files["tokenizer.json"])
    merges = described["model"]["merges"]
    first = next(i for i, merge in enumerate(merges) if set("".join(merge)) == {"▁"})
    published = merges[:first] + sorted(merges[first:], key=lambda merge: (len(merge[0]), len(merge[1])), reverse=True)
    assert published != merges
    described["model"]["merges"] = published
    config = _config(_rebuilt(files), "<s>", "</s>")
    written = to_metadata({"tokenizer.json": json.dumps(described).encode()}, config)
    merged = [i for i in runs if len(tokens[i]) > 1]
    assert len({written["tokenizer.ggml.scores"][i] for i in merged}) < len(merged)
    again = _rebuilt(to_files(_write(tmp_path / "b.gguf", written), 64))
    for text in (*PLAIN, *(" " * n + "x" for n in range(40))):
        assert again.encode(text).ids == Tokenizer.from_str(json.dumps(described)).encode(text).ids


def _with(change) -> Tokenizer:
    tokenizer = _trained("gpt-2")
    change(tokenizer)
    return tokenizer


def _as_described(changes: dict) -> Tokenizer:
    described = json.loads(_trained("gpt-2").to_str())
    described["model"] |= changes
    return Tokenizer.from_str(json.dumps(described))


def _metaspace() -> Tokenizer:
    vocab = {"<unk>": 0, "<|start|>": 1, "<|end|>": 2, "a": 3, "b": 4, "ab": 5}
    return transformers.LlamaTokenizer(vocab=vocab, merges=[("a", "b")]).backend_tokenizer


def _byte_fallback(merges: list[tuple[str, str]]) -> Tokenizer:
    vocab = {"<unk>": 0, "<|start|>": 1, "<|end|>": 2, "a": 3, "b": 4, "ab": 5, "ba": 6, "aba": 7}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def _template(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing("$A <think>", None, [("<think>", 2)])


BAD = {
    "another split": (
        lambda: _with(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace())),
        r"\(Whitespace\) is none",
    ),
    "no split": (lambda: _with(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([]))), r"\(nothing\) is none"),
    "normalizer": (lambda: _with(lambda t: setattr(t, "normalizer", normalizers.Lowercase())), r"\(ByteLevel\) is none"),
    "whole words": (lambda: _as_described({"ignore_merges": True}), "as 'gpt-2', but ignore_merges is True"),
    "another model": (
        lambda: Tokenizer(models.WordLevel({"<|start|>": 0, "<|end|>": 1}, "<|end|>")),
        "type WordLevel cannot",
    ),
    "strips": (lambda: _with(lambda t: t.add_tokens([AddedToken("<x>", lstrip=True)])), "'<x>' takes in the space"),
    "template": (lambda: _with(_template), "puts other tokens around text"),
    "metaspace": (_metaspace, "does not treat spaces as SentencePiece does"),
    "merges left out": (lambda: _byte_fallback([("a", "b"), ("b", "a"), ("ab", "a")]), "merges do not follow from scores"),
    "merges in turn": (
        lambda: _byte_fallback([("ab", "a"), ("a", "b"), ("a", "ba"), ("b", "a")]),
        "merges do not follow from scores",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_gguf_cannot_say_is_refused(name):
    make, message = BAD[name]
    tokenizer = make()
    with pytest.raises(UserError, match=message):
        to_metadata({"tokenizer.json": tokenizer.to_str().encode()}, _config(tokenizer, "<|start|>", "<|end|>"))


def test_damaged_files_are_refused():
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        to_metadata({"tokenizer.json": b"{}"}, _config(_trained("gpt-2"), "<|start|>", "<|end|>"))
