"""The tokenizer that lies beside a model or a corpus, and the tokens that begin and end a document."""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.outside_json import parse_object
from a3jax.places import local
from a3jax.strict import read

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer with the start and end tokens of documents, either of which may be absent."""

    tokenizer: Tokenizer
    files: dict[str, bytes]
    start: int | None
    end: int | None

    @functools.cached_property
    def vocab(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def sha256(self) -> str:
        """Of tokenizer.json; corpora and models with the same hash fit each other."""
        return hashlib.sha256(self.files["tokenizer.json"]).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without start and end."""
        return self.tokenizer.encode_batch([text], add_special_tokens=False)[0].ids  # `encode` would stop all threads

    def document(self, text: str) -> list[int]:
        """Token ids of a whole document: start, text, end."""
        return self.enclosed(self.encode(text))

    def enclosed(self, ids: list[int]) -> list[int]:
        """Token ids of a document's text, between its start and end."""
        start = [] if self.start is None else [self.start]
        end = [] if self.end is None else [self.end]
        return start + ids + end

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def byte_codec() -> TextCodec:
    """256 bytes, a start and an end: for models trained from nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    return TextCodec(tokenizer, files, 256, 257)


def load_codec(source: str | Path, start: str | None = None, end: str | None = None) -> TextCodec:
    """The tokenizer of a folder, or `byte_codec` for "bytes". `start` and `end` name tokens to use instead of its own.

    A model folder's `model.json` says how documents begin and end; elsewhere `tokenizer_config.json` does.
    """
    if str(source) == "bytes":
        codec = byte_codec()
        begins, ends = _named(codec.tokenizer, start, codec.start), _named(codec.tokenizer, end, codec.end)
        return dataclasses.replace(codec, start=begins, end=ends)
    folder = local(source)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; give a model folder, a tokenizer's folder, or 'bytes'")
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    tokenizer = _opened(files, str(folder / "tokenizer.json"))
    if (folder / "model.json").is_file():
        begins, ends = _enclosing(read(ModelConfig, folder / "model.json"))
    else:
        settings = parse_object(files.get("tokenizer_config.json", b"{}"), str(folder / "tokenizer_config.json"))
        begins, ends = (_special(tokenizer, settings.get(name)) for name in ("bos_token", "eos_token"))
    return TextCodec(tokenizer, files, _named(tokenizer, start, begins), _named(tokenizer, end, ends))


def codec_of(files: dict[str, bytes], config: ModelConfig, where: str) -> TextCodec:
    """The tokenizer of a model from the contents of its files; `where` names `tokenizer.json` in errors."""
    return TextCodec(_opened(files, where), files, *_enclosing(config))


def fillable(codec: TextCodec, config: ModelConfig) -> np.ndarray:
    """V bool: a blank never holds a start, an end or another special token, nor one that the tokenizer cannot write."""
    result_V = np.zeros(config.vocab, bool)
    result_V[list(codec.tokenizer.get_vocab(with_added_tokens=True).values())] = True
    special = [token for token, added in codec.tokenizer.get_added_tokens_decoder().items() if added.special]
    named = [token for token in (codec.start, codec.end, *config.end_tokens) if token is not None]
    result_V[special + named] = False
    return result_V


def _opened(files: dict[str, bytes], where: str) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{where} cannot be read: {error}") from None


def _enclosing(config: ModelConfig) -> tuple[int | None, int | None]:
    return config.start_token, config.end_tokens[0] if config.end_tokens else None


def _special(tokenizer: Tokenizer, token: str | dict | None) -> int | None:
    """The id of a token as `tokenizer_config.json` writes it."""
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_to_id(content)


def _named(tokenizer: Tokenizer, name: str | None, default: int | None) -> int | None:
    if name is None:
        return default
    token = tokenizer.token_to_id(name)
    if token is None:
        raise UserError(f"the tokenizer has no token '{name}'")
    return token
