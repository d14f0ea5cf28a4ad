"""Small tokenizers of the three kinds that models have, each as the files that lie beside a model.

`byte_level` is that of GPT-2, SmolLM2 and Llama 3: no space is put before a text, nor a start token. `metaspace` is that of
Llama 2 as transformers 5 writes it, `byte_fallback` as it was written before: both put a space before a text, begin it with
`<s>`, and write a character that they do not know as its bytes.
"""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The sun had set behind the hills, and the village was quiet. An old man sat on the steps of his house and told the",
    "children how the river had once been a road. Every spring, he said, it forgets where it came from. Hello world, hello!",
    "def area(r): return 3 * r * r  # the area of a circle",
]
MARK = "¶"
"""A character that every kind knows, and that never becomes one token with another."""
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACED = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def _trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str], text: list[str] = TEXT) -> dict[str, bytes]:
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(text, trainer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:  # bytes are plain tokens, which text never spells
        token["special"] = token["content"] not in _BYTES
    described["added_tokens"] = [token for token in described["added_tokens"] if token["special"]]
    return {"tokenizer.json": json.dumps(described).encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def byte_level(text: list[str] = TEXT) -> dict[str, bytes]:
    """One that has read `text`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, ["<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet(), text)


def _sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(_SPACED)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _metaspace() -> dict[str, bytes]:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return _trained(tokenizer, ["<unk>", "<s>", "</s>", *_BYTES], [MARK])


def _byte_fallback() -> dict[str, bytes]:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _trained(tokenizer, ["<unk>", "<s>", "</s>", *_BYTES], [MARK])


KINDS = {"byte_level": byte_level, "metaspace": _metaspace, "byte_fallback": _byte_fallback}
