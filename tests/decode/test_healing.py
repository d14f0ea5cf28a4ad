"""A blank begins with the last token of the text before it: what may stand there, and how likely what is filled in is."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from filling import document, fill, teacher_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level

import a3jax
from a3jax.data.healing import Healing, _spellings
from a3jax.data.tokenizer import TextCodec, fillable
from a3jax.data.tokenizer_files import open_tokenizer
from a3jax.decode.document import lay_out
from a3jax.decode.spelling import spelled
from a3jax.decode.template import Range, Template
from a3jax.generate import lengths
from a3jax.generate.filling import document_of
from a3jax.likelihood.alternatives import alternatives
from a3jax.likelihood.restriction import restriction

CODE = ["def f(x):\n    return x\n\n\ndef g(x):\n    if x:\n        return x\n    return 2 * x  # done ... yes\n"]
PER_KIND = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.lists(st.sampled_from([*"\n\n\n    \t:.adefrtu=é中🙂", "    return", " the", " of"]), max_size=6).map("".join)


@pytest.fixture(scope="module")
def lines():
    """A byte-level tokenizer that has read Python."""
    files = byte_level(CODE)
    return TextCodec(open_tokenizer(files, "tokenizer.json"), files, None, 1, 0)


@pytest.fixture(scope="module")
def healing(lines):
    return Healing(lines, fillable_of(lines))


@PER_KIND
@given(st.text(max_size=20))
def test_tokens_are_spelled_in_the_bytes_that_they_stand_for(lines, text):
    spelling = dict(_spellings(lines))
    assert b"".join(spelling[token] for token in lines.encode(text)) == text.encode()


def test_a_line_end_and_its_indentation_are_one_token_again(lines, healing):
    whole = lines.encode("def f(x):\n    return x")
    assert lines.encode("\n   ")[0] in whole
    healed = lay_out(["def f(x):\n", ""], ["    return x"], lines, healing)
    assert list(healed.tokens[healed.head :]) == whole
    assert [part.text for part in healed.parts(lines)] == ["def f(x):\n", "    return x", ""]
    apart = lay_out(["def f(x):\n", ""], ["    return x"], lines)
    assert list(apart.tokens[apart.head :]) == lines.encode("def f(x):\n") + lines.encode("    return x")
    assert apart.healed == (None,)
    assert apart.allowed == {}
    (allowed_V,) = healed.allowed.values()
    spelling = dict(_spellings(lines))
    expected = {token for token, own in spelling.items() if own.startswith(b"\n")} & {*np.flatnonzero(fillable_of(lines))}
    assert {*np.flatnonzero(allowed_V)} == expected


@pytest.mark.parametrize(
    "before", ["def f(x):\n    ", "def f(x):\n    if x:\n        return", "if x:\n\t\t", "x = ", "# done  "]
)
def test_behind_an_indentation_a_word_has_the_tokens_of_running_text(lines, healing, before):
    truth = " x" if before.endswith("return") else "return x"
    document = lay_out([before, ""], [truth], lines, healing)
    assert list(document.tokens[document.head :]) == lines.encode(before + truth)
    assert [part.text for part in document.parts(lines)] == [before, truth, ""]
    assert before.endswith(lead := document.parts(lines)[1].lead)
    assert len(lead) <= 1 or lead.strip()


def fillable_of(codec):
    return fillable(codec, types.SimpleNamespace(vocab=480, end_tokens=()))


def test_what_no_longer_token_begins_with_stays_where_it_is(lines, healing):
    spelling = dict(_spellings(lines))
    end = lines.tokenizer.id_to_token(1)
    for piece in ("x" + end, "xé", "x\n", "x", "\n", ""):
        document = lay_out([piece, ""], [[0, 0]], lines, healing)
        own = lines.encode(piece)
        longer = len(own) > 1 and any(
            one.startswith(spelling[own[-1]]) and one != spelling[own[-1]] for one in spelling.values()
        )
        assert (document.healed == (None,)) != (longer and own[-1] != 1)


@PER_KIND
@given(st.data())
def test_the_given_text_stands_in_the_whole_exactly_once(codec, data):
    """Whatever of what may stand there is filled in."""
    healing = Healing(codec, fillable_of(codec))
    pieces = [data.draw(words) or "a", *(data.draw(words) for _ in range(data.draw(st.integers(1, 3))))]
    laid_out = lay_out(pieces, [[0] * data.draw(st.integers(1, 3)) for _ in pieces[1:]], codec, healing)
    tokens, plain = list(laid_out.tokens), sorted({*np.flatnonzero(fillable_of(codec))} - codec.single_bytes)
    for place in laid_out.blanks:
        for at in range(place.start, place.stop):
            may = np.flatnonzero(laid_out.allowed[at]).tolist() if at in laid_out.allowed else plain
            tokens[at] = data.draw(st.sampled_from(may))
    filled = laid_out._replace(tokens=tuple(tokens))
    parts = filled.parts(codec)
    assert [part.text for part in parts if not part.filled] == pieces
    text = "".join(part.text for part in parts)
    assert "".join(spelled(codec, filled.tokens, parts)) == text
    decoded = codec.decode(tokens[filled.head :])
    assert text.lstrip(" ") == decoded.lstrip(" ") or "\ufffd" in decoded  # SentencePiece takes a first space for its own
    for number, place in enumerate(filled.blanks):
        if filled.healed[number] is not None:
            lead = filled.healed[number].text
            whole = codec.decode(tokens[place], inside=place.start > filled.head)
            assert whole == lead + filled.written(number, tokens[place], codec)


@PER_KIND
@given(before=words, truth=words)
def test_the_truth_can_always_be_filled_in(codec, before, truth):
    document = lay_out([f"a{before}", ""], [truth or "."], codec, Healing(codec, fillable_of(codec)))
    for place, allowed_V in document.allowed.items():
        assert allowed_V[document.tokens[place]]
    assert document.written(0, document.tokens[document.blanks[0]], codec) == (truth or ".")


MODES = {
    "ar": ("ar", {}),
    "random_3": ("random_3", {}),
    "dynamic": ("ar", {"mode": "dynamic", "threshold": 0.1}),
    "speculative": ("random_1", {"mode": "speculative", "drafts": 2}),
    "resample": ("ar", {"mode": "resample", "commit": 2}),
    "diffusion": ("ar", {"mode": "diffusion", "steps": 3}),
    "block_diffusion": ("ar", {"mode": "block_diffusion", "steps": 2, "block": 4}),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "random_3" else pytest.mark.long) for name in MODES])
def test_every_mode_heeds_what_may_stand_where(name, tiny, network):
    """And decoding tells the probability among what may, as teacher forcing computes it."""
    order, options = MODES[name]
    net = network(tiny(layers=2))
    documents = [document([3, 4, 4, 2, 5, 4]), document([1, 6], seed=1)]
    few = np.zeros((2, 48), bool)
    few[0, [5, 40]], few[1, [7, 8, 9]] = True, True
    restricted = [{3: few[0], 11: few[1]}, {1: few[1]}]
    _, filled = fill(net, documents, order, seed=3, restricted=restricted, temperature=2.0, **options)
    for row, each in enumerate(restricted):
        assert all(allowed_V[filled.tokens_BxL[row, place]] for place, allowed_V in each.items())
    if name in ("ar", "random_3", "dynamic"):  # whose passes are groups of one order
        known = restriction(restricted, 48)
        expected = teacher_forced(net, documents, filled, known)
        blank = filled.passes_BxL > 0
        np.testing.assert_allclose(filled.log_probs_BxL[blank], np.asarray(expected)[blank], atol=1e-4)


def test_a_restricted_place_has_the_probability_among_what_may_stand_there(worded):
    """Against all tokens that may, one by one, without any restriction."""
    healed = document_of(worded, Template(("The sun had set behind t", " hills"), (1,)), heal=True)
    ((place, allowed_V),) = healed.allowed.items()
    known = [token_at == place for token_at in range(len(healed.tokens))]
    marks = [not here for here in known]
    texts = [healed.tokens[:place] + (int(token),) + healed.tokens[place + 1 :] for token in np.flatnonzero(allowed_V)]
    plain = np.array([one.total for one in a3jax.token_log_likelihoods(worded, texts, [marks] * len(texts))])
    found = a3jax.token_log_likelihoods(worded, texts, [marks] * len(texts), allowed=[healed.allowed] * len(texts))
    among = np.array([one.total for one in found])
    assert np.exp(among).sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(among, plain - np.logaddexp.reduce(plain), atol=1e-4)


@pytest.mark.long
def test_sizes_are_scored_by_what_is_filled_in_alone(worded, monkeypatch):
    """As each is by itself, the first token among those that begin as the text before the blank ends."""
    template, found, score = Template(("The sun had se", " behind"), (Range(1, 4),)), [], lengths._scores
    monkeypatch.setattr(lengths, "_scores", lambda *args: found.append(score(*args)) or found[-1])
    lengths.with_lengths(worded, template, a3jax.Decoding(heal=True))
    for size, one in zip(itertools.count(1), found[0]):
        filled = a3jax.infill(worded, dataclasses.replace(template, sizes=(size,)), heal=True)
        marks = [place < filled.places[1].start for place in range(len(filled.tokens))]
        alone = a3jax.token_log_likelihood(worded, filled.tokens, marks, allowed=filled.allowed)
        assert filled.allowed
        assert one == pytest.approx(alone.total / len(alone.tokens), abs=2e-5)


def test_it_can_be_left_out(worded):
    healed, apart = (a3jax.infill(worded, "The sun had se[[3]] behind", heal=heal) for heal in (True, False))
    assert len(healed.blanks[0].tokens) == 4
    assert len(apart.blanks[0].tokens) == 3
    assert apart.allowed == {}
    for filled in (healed, apart):
        score = a3jax.token_log_likelihood(worded, filled.tokens, filled.given, allowed=filled.allowed)
        assert score.total == pytest.approx(filled.log_prob, abs=1e-3)


def test_what_else_might_have_stood_there_is_told_of_what_may(worded):
    filled = a3jax.infill(worded, "The sun had se[[3]]", heal=True)
    (place,) = filled.allowed
    found = alternatives(worded, filled.tokens, 4, filled.allowed)
    begin = filled.places[1].start
    assert place == begin
    np.testing.assert_allclose(found.log_probs_T[begin:], filled.log_probs[begin:], atol=1e-4)
    known = found.likeliest_TxK[place][np.isfinite(found.log_probs_TxK[place])]
    assert filled.allowed[place][known].all()
