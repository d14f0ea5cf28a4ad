"""Tokenizers and the tokens that begin and end documents."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from a3jax.data.tokenizer import byte_codec, load_codec
from a3jax.errors import UserError
from a3jax.files.strict import to_json


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of five words, as a model folder carries it."""
    words = {word: i for i, word in enumerate(["[UNK]", "<s>", "</s>", "hello", "world", "<x>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<x>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("text", ["plain", "ünï ∀ 🎉", "  spaces\n\ttabs ", "\x00\x7f", ""])
def test_bytes_are_the_tokens_of_the_byte_codec_and_decode_to_the_text(text):
    codec = byte_codec()
    assert len(codec.encode(text)) == len(text.encode())
    assert codec.decode(codec.encode(text)) == text
    assert codec.document(text) == [256, *codec.encode(text), 257]
    assert codec.vocab == 258


def test_special_tokens_in_the_text_of_a_document_stay_one_token():
    assert byte_codec().encode("<|end|>") == [257]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}, [1, 3, 4, 2]),
        ({"bos_token": None, "eos_token": "</s>"}, [3, 4, 2]),
        ({}, [3, 4]),
    ],
)
def test_tokenizer_config_says_how_documents_begin_and_end(folder, settings, expected):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_codec(folder).document("hello world") == expected


def test_names_override_and_model_json_comes_before_tokenizer_config(folder, tiny):
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<x>", "eos_token": "<x>"}')
    assert load_codec(folder, "<s>", "</s>").document("hello") == [1, 3, 2]
    (folder / "model.json").write_text(to_json(tiny(start_token=1, end_tokens=(2, 5))))
    assert load_codec(folder).document("hello") == [1, 3, 2]
    assert load_codec(folder, end="<x>").document("hello") == [1, 3, 5]


def test_what_is_missing_or_broken_is_named(folder):
    with pytest.raises(UserError, match="the tokenizer has no token '<y>'"):
        load_codec(folder, start="<y>")
    with pytest.raises(UserError, match=r"nowhere has no tokenizer\.json"):
        load_codec(folder / "nowhere")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not JSON"):
        load_codec(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_codec(folder)


def test_the_hash_tells_tokenizers_apart(folder):
    assert load_codec(folder).sha256 == load_codec(folder).sha256 != byte_codec().sha256
