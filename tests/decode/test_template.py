"""Templates: what is a blank, what is text, and where the tokens go."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import MARK

from a3jax.data.tokenizer import TextCodec, byte_codec
from a3jax.decode.document import lay_out
from a3jax.decode.spelling import spelled
from a3jax.decode.template import LARGEST, Template, parse
from a3jax.errors import UserError

CODEC = byte_codec()
BARE = TextCodec(CODEC.tokenizer, CODEC.files, None, None)
plain = st.text(st.characters(exclude_characters="[]\\", codec="utf-8"), max_size=12)
sizes = st.integers(1, LARGEST - 1)


@settings(max_examples=200)
@given(st.data(), st.lists(sizes, min_size=1, max_size=4))
def test_pieces_and_sizes_come_back(data, blanks):
    pieces = [data.draw(plain) for _ in range(len(blanks) + 1)]
    text = pieces[0] + "".join(f"[[{size}]]{piece}" for size, piece in zip(blanks, pieces[1:]))
    assert parse(text) == Template(tuple(pieces), tuple(blanks))


@settings(max_examples=200)
@given(st.text("[]\\ 0123,x-", max_size=30))
def test_any_text_parses_or_is_refused(text):
    try:
        template = parse(text)
    except UserError:
        return
    assert len(template.pieces) == len(template.sizes) + 1
    assert all(1 <= size < LARGEST for size in template.sizes)
    assert sum(map(len, template.pieces)) <= len(text) - len("[[1]]") * len(template.sizes)


def test_what_is_not_a_blank_is_text():
    text = r"\[[8]] [[1, 2], [3, 4]] [[1, 2]] [[ -f x ]] x[[0, 1]] [8] [[2]]"
    assert parse(text) == Template((text[1:-5], ""), (2,))
    assert parse("[[ 3 ]]") == Template(("", ""), (3,))
    assert parse("[[[007]]]") == Template(("[", "]"), (7,))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no blank"),
        ("plain", "no blank"),
        (r"\[[8]]", "no blank"),
        ("a [[0]] b", r"\[\[0\]\] is a blank of no tokens"),
        ("a [[000]] b", "no tokens"),
        ("a [[x]] b", r"\[\[x\]\] is no blank"),
        ("a [[]] b", "is no blank"),
        ("a [[8-3]] b", r"\[\[8-3\]\] is no blank"),
        ("a [[-3]] b", "is no blank"),
        ("a [[8.0]] b", "is no blank"),
        ("a [[٣]] b", "is no blank"),
        ("a [[1000000]] b", "below 1000000"),
        ("a [[" + "9" * 5000 + "]] b", "below 1000000"),
    ],
)
def test_bad_blanks(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(text)


@settings(max_examples=100)
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_layout(data, blanks):
    pieces = [data.draw(plain) for _ in range(len(blanks) + 1)]
    tokens, is_given, places, *_ = lay_out(pieces, [[7] * size for size in blanks], CODEC)
    assert tokens[0] == CODEC.start
    assert [place.stop - place.start for place in places] == blanks
    filled = {i for place in places for i in range(place.start, place.stop)}
    assert [not g for g in is_given] == [i in filled for i in range(len(tokens))]
    assert CODEC.decode([t for t, g in zip(tokens[1:], is_given[1:]) if g]) == "".join(pieces)


def test_pieces_are_tokenized_apart():
    assert lay_out(["ab", "cd"], [[0, 0]], CODEC).tokens == (256, *CODEC.encode("ab"), 0, 0, *CODEC.encode("cd"))


def test_without_a_start_token_the_first_token_must_be_given():
    assert lay_out(["a", ""], [[0]], BARE)[:3] == ((CODEC.encode("a")[0], 0), (True, False), (slice(1, 2),))
    with pytest.raises(UserError, match="no token to stand before it"):
        lay_out(["", "a"], [[0]], BARE)


anything = st.text(st.sampled_from(" ab\u00e9\u4e2d\U0001f642\ufffd\n\u2581[]") | st.characters(codec="utf-8"), max_size=8)
PER_KIND = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PER_KIND
@given(st.data(), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_given_text_comes_back_byte_for_byte_whatever_stands_in_the_blanks(codec, data, sizes):
    pieces = [data.draw(anything) for _ in range(len(sizes) + 1)]
    tokens = st.sampled_from(sorted(codec.tokenizer.get_vocab().values()))
    blanks = [data.draw(st.lists(tokens, min_size=size, max_size=size)) for size in sizes]
    document = lay_out(pieces, blanks, codec)
    assert document.head == (codec.start is not None or not codec.encode(pieces[0]))
    parts = document.parts(codec)
    assert [part.text for part in parts if not part.filled] == pieces
    assert [list(document.tokens[part.place]) for part in parts if part.filled] == blanks
    texts = spelled(codec, document.tokens, parts)
    assert "".join(texts) == "".join(part.text for part in parts)
    assert len(texts) == len(document.tokens)


def test_bytes_that_change_a_blank_two_before_take_its_text_back(codec):
    """A run of bytes that is no character is a mark for each of them, an empty blank between them or not."""
    byte = codec.tokenizer.get_vocab()
    blanks = [[byte["<0x00>"]], [], [byte["<0x80>"]]] if "<0x00>" in byte else [[byte["\u0120"]], [], [byte["\u0122"]]]
    document = lay_out([""] * 4, blanks, codec)
    parts = document.parts(codec)
    whole = codec.decode([token for blank in blanks for token in blank])
    assert "".join(part.text for part in parts if part.filled) == whole
    assert "".join(spelled(codec, document.tokens, parts)) == whole


@PER_KIND
@given(anything)
def test_a_piece_inside_a_text_has_the_tokens_that_the_tokenizer_gives_it_there(codec, text):
    before = codec.encode(MARK)
    inside = codec.encode(text, inside=True)
    if codec.start is not None:  # no tokens are made across words, so that the mark can be cut off again
        assert codec.encode(MARK + text) == before + inside
    assert codec.decode(inside, inside=True) == codec.decode(before + inside).removeprefix(MARK)
    if MARK not in text and "\u2581" not in text:
        assert codec.decode(inside, inside=True) == text


def test_only_a_document_begins_with_a_space_of_its_own(codec):
    for text in ("Hello world", "The sun", "x = 3 * r", "\u00e9\u4e2d\U0001f642"):
        documents = [lay_out([text[:cut], ""], [text[cut:]], codec) for cut in range(1, len(text))]
        tokens = [list(document.tokens[document.head :]) for document in documents]
        assert {codec.decode(each) for each in tokens} == {text}
        assert codec.encode(text) in tokens  # where it is cut between two of its own


def test_a_special_token_inside_a_piece_is_followed_by_what_the_tokenizer_puts_there(codec):
    end = codec.end
    name = codec.tokenizer.id_to_token(end)
    text = f"so {name}the{name}"
    whole = codec.encode(MARK + text)
    assert whole == codec.encode(MARK) + codec.encode(text, inside=True)
    assert whole.count(end) == 2


def test_a_character_cut_between_two_blanks_goes_with_the_second(codec):
    ids = codec.encode("\u4e2d", inside=True)
    assert len(ids) == 3  # its bytes
    document = lay_out(["a", "", " b"], [ids[:1], ids[1:]], codec)
    assert [part.text for part in document.parts(codec)] == ["a", "", "", "\u4e2d", " b"]
    lost = lay_out(["a", "\u00f6"], [ids[:1]], codec)  # what is given beside a broken character stays whole
    assert [part.text for part in lost.parts(codec)] == ["a", "\ufffd", "\u00f6"]
    assert list(itertools.chain.from_iterable(document.tokens[p.place] for p in document.parts(codec) if p.filled)) == ids
