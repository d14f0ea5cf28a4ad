"""The tokenizer that lies beside a model or a corpus, and the tokens that begin and end a document.

One rule says how a document begins, wherever it is prepared, filled in, scored, evaluated, served or exported: with what the
tokenizer's own post-processor puts before text, or with nothing where it puts nothing. `--start` of `a3jax import` says
otherwise for a model, and is kept in its `model.json`; that of `a3jax prepare` for a corpus, and is kept in its manifest.

A model of this kind predicts no first token. Where a text has nothing before the first token that is to be predicted, as
with an empty prompt or a blank at the very beginning, the model's `bos_token_id` stands there even where documents do not
begin with it, else its end token.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, processors

from a3jax.config import ModelConfig
from a3jax.data.tokenizer_files import FILES, around, open_tokenizer, settings_of, token_of, without_prefix
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.files.strict import read

AUTO, NONE = "auto", "none"
"""Instead of the name of a token: the one by the rule, and none at all."""


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer with the start and end tokens of documents, either of which may be absent."""

    tokenizer: Tokenizer
    files: dict[str, bytes]
    start: int | None
    """Every document begins with it."""
    end: int | None
    bos: int | None = None
    """The model's own start token, whether documents begin with it or not."""

    @functools.cached_property
    def vocab(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def sha256(self) -> str:
        """Of tokenizer.json, and of tokens that only the files beside it know; with the same, corpora and models fit."""
        content = self.files["tokenizer.json"]
        own = {token["content"] for token in json.loads(content).get("added_tokens") or ()}
        more = [
            (i, token.content) for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.content not in own
        ]
        return hashlib.sha256(content + (json.dumps(sorted(more)).encode() if more else b"")).hexdigest()

    @functools.cached_property
    def _inside(self) -> Tokenizer:
        return without_prefix(self.tokenizer)

    def encode(self, text: str, inside: bool = False) -> list[int]:
        """Token ids of plain text, without start and end: at the beginning of a document, or `inside` it.

        SentencePiece puts a space before a document, and none before what stands inside it; behind a special token in the
        text it does as it would there.
        """
        if not inside or self._inside is self.tokenizer:
            return _encoded(self.tokenizer, text).ids
        encoding = _encoded(self._inside, text)
        special = next((i for i, token in enumerate(encoding.ids) if token in self._added), None)
        if special is None:
            return encoding.ids
        rest = text[encoding.offsets[special][0] :]
        return encoding.ids[:special] + _encoded(self.tokenizer, rest).ids

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_tokens_decoder())

    def document(self, text: str) -> list[int]:
        """Token ids of a whole document: start, text, end."""
        return self.enclosed(self.encode(text))

    def enclosed(self, ids: list[int]) -> list[int]:
        """Token ids of a document's text, between its start and end."""
        start = [] if self.start is None else [self.start]
        end = [] if self.end is None else [self.end]
        return start + ids + end

    @property
    def stand_in(self) -> int | None:
        """What stands before the first token to predict where nothing else does: the start token, else the end token."""
        return next((token for token in (self.start, self.bos, self.end) if token is not None), None)

    def decode(self, ids: list[int], inside: bool = False) -> str:
        """Text of token ids, special tokens included, at the beginning of a document or `inside` it."""
        return (self._inside if inside else self.tokenizer).decode(ids, skip_special_tokens=False)

    def certain(self, ids: list[int], inside: bool = False) -> str:
        """Their text as far as no further token changes it: up to a character, or a run of single bytes, that may go on."""
        count = len(ids)
        while count and ids[count - 1] in self.single_bytes:
            count -= 1
        return self.decode(ids[:count], inside).rstrip("\ufffd")

    @functools.cached_property
    def single_bytes(self) -> frozenset[int]:
        """The tokens of single bytes that are decoded together, all or none, as SentencePiece has them."""
        tokens = (self.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in tokens if token is not None)

    def name(self, token: int | None) -> str:
        """A token in a message."""
        return "no token" if token is None else repr(self.tokenizer.id_to_token(token) or token)


def byte_codec() -> TextCodec:
    """256 bytes, a start and an end: for models trained from nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.post_processor = processors.TemplateProcessing("<|start|> $A", special_tokens=[("<|start|>", 256)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    return TextCodec(tokenizer, files, 256, 257, 256)


def load_codec(source: str | Path, start: str = AUTO, end: str = AUTO) -> TextCodec:
    """The tokenizer of a folder, or `byte_codec` for "bytes".

    `start` and `end` are "auto", "none", or name a token. By itself a document begins as a model folder's `model.json`
    says, elsewhere as the tokenizer's post-processor has it; it ends with the first end token of `model.json`, elsewhere
    with the `eos_token` of `tokenizer_config.json`. Raises `UserError` for a folder without a tokenizer, one that cannot be
    read, and a token that it has not.
    """
    if str(source) == "bytes":
        codec = byte_codec()
    else:
        folder = place(source)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder} has no tokenizer.json; give a model folder, a tokenizer's folder, or 'bytes'")
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        where = str(folder / "tokenizer.json")
        if (folder / "model.json").is_file():
            codec = codec_of(files, read(ModelConfig, folder / "model.json"), where)
        else:
            tokenizer, settings = open_tokenizer(files, where), settings_of(files, where)
            bos, eos = (token_of(tokenizer, settings.get(name)) for name in ("bos_token", "eos_token"))
            own = start_of(tokenizer, where) if start == AUTO else None
            codec = TextCodec(tokenizer, files, own, eos, bos)
    begins, ends = (_named(codec.tokenizer, *pair) for pair in ((start, codec.start), (end, codec.end)))
    return dataclasses.replace(codec, start=begins, end=ends)


def codec_of(files: dict[str, bytes], config: ModelConfig, where: str) -> TextCodec:
    """The tokenizer of a model from the contents of its files; `where` names `tokenizer.json` in errors."""
    end = config.end_tokens[0] if config.end_tokens else None
    return TextCodec(open_tokenizer(files, where), files, config.document_start, end, config.start_token)


def with_start(config: ModelConfig, files: dict[str, bytes], where: str, start: str = AUTO) -> ModelConfig:
    """`config`, knowing how documents begin: as its tokenizer has it by itself, or as `start` says.

    Raises `UserError` as `load_codec` does.
    """
    tokenizer = open_tokenizer(files, where)
    token = _named(tokenizer, start, start_of(tokenizer, where) if start == AUTO else None)
    if token is None:
        return dataclasses.replace(config, starts=config.start_token is None)
    return dataclasses.replace(config, start_token=token, starts=True)


def start_of(tokenizer: Tokenizer, where: str) -> int | None:
    """What the tokenizer's own post-processor puts before text. Raises `UserError` if that is more than one token."""
    before, _ = around(tokenizer)
    if len(before) > 1:
        names = " ".join(tokenizer.id_to_token(token) or str(token) for token in before)
        raise UserError(f"{where} puts {len(before)} tokens before text ({names}); say with --start which one is to be there")
    return before[0] if before else None


def fillable(codec: TextCodec, config: ModelConfig) -> np.ndarray:
    """V bool: a blank never holds a start, an end or another special token, nor one that the tokenizer cannot write."""
    result_V = np.zeros(config.vocab, bool)
    result_V[list(codec.tokenizer.get_vocab(with_added_tokens=True).values())] = True
    special = [token for token, added in codec.tokenizer.get_added_tokens_decoder().items() if added.special]
    named = [token for token in (codec.start, codec.bos, codec.end, *config.end_tokens) if token is not None]
    result_V[special + named] = False
    return result_V


def _encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]  # `encode` would stop all threads


def _named(tokenizer: Tokenizer, name: str, own: int | None) -> int | None:
    if name in (AUTO, NONE):
        return own if name == AUTO else None
    token = tokenizer.token_to_id(name)
    if token is None:
        raise UserError(f"the tokenizer has no token '{name}'")
    return token
