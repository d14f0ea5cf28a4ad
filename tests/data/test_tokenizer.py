"""Tokenizers and the tokens that begin and end documents."""

import json

import pytest
import transformers
from small_tokenizers import KINDS
from tokenizers import Tokenizer, models, pre_tokenizers

from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec, load_codec
from a3jax.data.tokenizer_files import open_tokenizer, put_before
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
        ({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}, [3, 4, 2]),
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


def _settled(folder, changes=None, **settings):
    """A folder of a byte-level tokenizer with `changes` to its `tokenizer.json`, and these settings beside it."""
    files = KINDS["byte_level"]()
    described = json.loads(files["tokenizer.json"]) | (changes or {})
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps(json.loads(files["tokenizer_config.json"]) | settings))
    return folder


TEXTS = ("Hello<|tool|>world", "the <|think|> village <extra> </s> <pad>", "The sun had set", "")
TOOL = {"content": "<|tool|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
SIZE = 385
"""Tokens of `tokenizer.json`."""
BEHIND = {f"{SIZE}": TOOL, f"{SIZE + 1}": TOOL | {"content": "<|think|>", "special": False, "rstrip": True}}
TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    **{"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"},
}
SETTINGS = {
    "nothing": {},
    "added_tokens_decoder": {"added_tokens_decoder": BEHIND},
    "in another order": {"added_tokens_decoder": dict(reversed(BEHIND.items()))},
    "a plain token made special": {"added_tokens_decoder": {"258": TOOL | {"content": "he"}}},
    "extra_special_tokens": {"extra_special_tokens": ["<|tool|>", "<extra>"]},
    "named ones": {"extra_special_tokens": {"tool_token": "<|tool|>"}, "image_token": "<extra>"},
    "additional_special_tokens": {"additional_special_tokens": ["<|tool|>", {"__type": "AddedToken", "content": "<extra>"}]},
    "roles": {"pad_token": "<pad>", "mask_token": {"__type": "AddedToken", "content": "<|tool|>", "lstrip": True}},
    "all": {"added_tokens_decoder": BEHIND, "extra_special_tokens": ["<extra>"], "pad_token": "<pad>"},
    "what transformers does not read": {"add_bos_token": True, "add_eos_token": True},
}


def _as_transformers(folder):
    codec, theirs = load_codec(folder), transformers.AutoTokenizer.from_pretrained(folder)
    start = [] if codec.start is None else [codec.start]
    for text in TEXTS:
        assert codec.encode(text) == theirs(text, add_special_tokens=False).input_ids
        whole = theirs(text).input_ids
        assert whole[: len(start) + len(codec.encode(text))] == start + codec.encode(text)
        assert codec.tokenizer.encode(text).ids == whole
        assert codec.decode(whole) == theirs.decode(whole)
    assert codec.vocab == len(theirs)
    special = {i for i, token in codec.tokenizer.get_added_tokens_decoder().items() if token.special}
    assert special == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    return codec


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_and_what_stands_before_text_are_those_of_transformers(name, tmp_path):
    assert _as_transformers(_settled(tmp_path, **SETTINGS[name])).start is None


def test_older_files_beside_it_are_read_as_transformers_does(tmp_path):
    _settled(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|tool|>": SIZE, "<pad>": SIZE + 1}))
    assert _as_transformers(tmp_path).encode("<|tool|><pad>") == [SIZE, SIZE + 1]


@pytest.mark.parametrize("name", KINDS)
def test_a_document_begins_as_in_transformers(name, tmp_path):
    for file, content in KINDS[name]().items():
        (tmp_path / file).write_bytes(content)
    codec, theirs = load_codec(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [*codec.document("Hello world")][:-1] == theirs("Hello world").input_ids
    assert (codec.start, codec.bos) == ((None, 0) if name == "byte_level" else (1, 1))
    assert load_codec(tmp_path, start="none").start is None
    assert load_codec(tmp_path, start="</s>").start == codec.end


def test_text_is_never_cut_nor_filled_up(tmp_path):
    plain = _settled(tmp_path)
    expected = load_codec(plain).encode("The sun had set behind the hills")
    cut = _settled(tmp_path, {"truncation": TRUNCATION, "padding": PADDING})
    assert len(expected) > 4
    assert load_codec(cut).encode("The sun had set behind the hills") == expected
    assert _as_transformers(cut).document("a") == [*load_codec(cut).encode("a"), 1]
    assert (
        prepare([_texts(tmp_path)], tmp_path / "corpus", Preparation(str(cut), held_out=0)).train.tokens == len(expected) + 1
    )


def _texts(folder):
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("The sun had set behind the hills")
    return folder / "texts"


def test_a_token_with_two_ids_is_refused(tmp_path):
    _settled(tmp_path, added_tokens_decoder={"400": TOOL})
    message = (
        rf"{tmp_path}/tokenizer_config.json gives '<\|tool\|>' the id 400, but by {tmp_path}/tokenizer.json it is {SIZE}"
    )
    with pytest.raises(UserError, match=message):
        load_codec(tmp_path)
    _settled(tmp_path, added_tokens_decoder={"x": 1})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: its tokens cannot be read"):
        load_codec(tmp_path)


def test_several_tokens_before_text_are_refused_unless_one_is_named(tmp_path):
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    template += [{"Sequence": {"id": "A", "type_id": 0}}]
    known = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<s>", "</s>"))}
    processor = {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": known}
    _settled(tmp_path, {"post_processor": processor})
    with pytest.raises(UserError, match=r"puts 2 tokens before text \(<s> </s>\); say with --start which one"):
        load_codec(tmp_path)
    assert load_codec(tmp_path, start="<s>").start == 0
    assert load_codec(tmp_path, start="none").start is None


def test_tokens_known_to_the_settings_alone_tell_tokenizers_apart(tmp_path):
    plain = load_codec(_settled(tmp_path)).sha256
    assert load_codec(_settled(tmp_path, added_tokens_decoder=BEHIND)).sha256 != plain


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", ["<s>", "</s>", None])
def test_files_that_are_handed_on_begin_text_as_the_model_does(name, start, tmp_path):
    files = KINDS[name]()
    described = json.loads(files["tokenizer.json"]) | {"truncation": TRUNCATION, "padding": PADDING}
    before = files | {"tokenizer.json": json.dumps(described).encode()}
    token = open_tokenizer(files, "").token_to_id(start or "")
    handed_on = put_before(before, token, "tokenizer.json")
    for file, content in handed_on.items():
        (tmp_path / file).write_bytes(content)
    raw, theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The sun had set behind the hills"
    expected = [*([] if token is None else [token]), *open_tokenizer(files, "").encode(text, add_special_tokens=False).ids]
    assert raw.encode(text).ids == theirs(text).input_ids == expected
    assert load_codec(tmp_path).start == token
    assert put_before(handed_on, token, "tokenizer.json") == handed_on
