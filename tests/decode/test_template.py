"""Templates: what is a blank, what is text, and where the tokens go."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.data.tokenizer import TextCodec, byte_codec
from a3jax.decode.template import LARGEST, Template, lay_out, parse
from a3jax.errors import UserError

CODEC = byte_codec()
BARE = TextCodec(CODEC.tokenizer, CODEC.files, None, None)
plain = st.text(st.characters(exclude_characters="[]\\", codec="utf-8"), max_size=12)
sizes = st.integers(1, LARGEST - 1)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(sizes, min_size=1, max_size=4))
def test_pieces_and_sizes_come_back(data, blanks):
    pieces = [data.draw(plain) for _ in range(len(blanks) + 1)]
    text = pieces[0] + "".join(f"[[{size}]]{piece}" for size, piece in zip(blanks, pieces[1:]))
    assert parse(text) == Template(tuple(pieces), tuple(blanks))


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_layout(data, blanks):
    pieces = [data.draw(plain) for _ in range(len(blanks) + 1)]
    tokens, is_given, places = lay_out(pieces, [[7] * size for size in blanks], CODEC)
    assert tokens[0] == CODEC.start
    assert [place.stop - place.start for place in places] == blanks
    filled = {i for place in places for i in range(place.start, place.stop)}
    assert [not g for g in is_given] == [i in filled for i in range(len(tokens))]
    assert CODEC.decode([t for t, g in zip(tokens[1:], is_given[1:]) if g]) == "".join(pieces)


def test_pieces_are_tokenized_apart():
    assert lay_out(["ab", "cd"], [[0, 0]], CODEC).tokens == (256, *CODEC.encode("ab"), 0, 0, *CODEC.encode("cd"))


def test_without_a_start_token_the_first_token_must_be_given():
    assert lay_out(["a", ""], [[0]], BARE) == ((CODEC.encode("a")[0], 0), (True, False), (slice(1, 2),))
    with pytest.raises(UserError, match="no start token"):
        lay_out(["", "a"], [[0]], BARE)
