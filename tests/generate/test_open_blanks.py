"""Blanks of unknown length: what is predicted when, where it stands, and where it ends."""

import dataclasses

import brute_force
import jax
import numpy as np
import pytest
from flax import nnx

import a3jax
from a3jax.decode.template import Open, Range, Template, parse
from a3jax.errors import UserError
from a3jax.evaluate.blanks import Blanked, fillers


@pytest.fixture(scope="module")
def model(worded):
    """A random model that is said to know ends."""
    return dataclasses.replace(worded, record=dataclasses.replace(worded.record, blanks_end=True))


def greedy_by_the_book(model, before, after, gap):
    """Tokens and log-probabilities of one blank, with every mask in full, and what follows at places of its own."""
    params, end = nnx.to_pure_dict(model.params), {*model.config.end_tokens, *([model.codec.end] if model.codec.end else [])}
    allowed = np.array(model.fillable) | np.isin(np.arange(model.config.vocab), list(end))
    tokens = np.array([*before, *[0] * gap, *after])
    place, first = np.arange(len(tokens)), len(before)
    # What is given comes first, the blank's places one by one, and those not reached yet after everything.
    groups = np.where((place >= first) & (place < first + gap), len(tokens) + place, place)
    found, log_probs = [], []
    for i in range(gap):
        logits = brute_force.two_streams(model.config, params, tokens, groups, np.ones(len(tokens), int))[1][first + i]
        token = int(np.argmax(np.where(allowed, logits, -np.inf)))
        if token in end:
            break
        found.append(token)
        log_probs.append(brute_force.log_softmax(logits)[token])
        tokens[first + i] = token
    return found, log_probs


def _likelier(model, seed):
    """The model with an output for its end token that is large now and then."""
    params = nnx.to_pure_dict(model.params)
    head = "embedding" if model.config.tied_head else "head"
    end = model.config.end_tokens[0]
    matrix = np.array(params[head])
    matrix[end] = 3.0 * np.random.default_rng(seed).normal(size=matrix.shape[1])
    state = jax.tree.map(lambda x: x, model.params)
    nnx.replace_by_pure_dict(state, {**params, head: jax.numpy.asarray(matrix)})
    return dataclasses.replace(model, params=state)


def known(model, text, inside):
    """Tokens of a given piece of text."""
    head = [] if inside or model.codec.start is None else [model.codec.start]
    return [*head, *model.codec.encode(text, inside=inside)]


def test_a_blank_is_filled_to_its_end_and_what_follows_stands_behind_the_gap(model):
    """A random model seldom ends by itself, so its end token is made likely."""
    gap, lengths = 7, []
    for seed in range(6):
        likelier = _likelier(model, seed)
        filled = a3jax.infill(likelier, f"ab[[..{gap}]]cd", heal=False)
        before, after = known(model, "ab", False), known(model, "cd", True)
        tokens, log_probs = greedy_by_the_book(likelier, before, after, gap)
        assert list(filled.blanks[0].tokens) == tokens
        np.testing.assert_allclose(filled.blanks[0].log_prob, sum(log_probs), atol=1e-4)
        assert filled.finished == ("stop" if len(tokens) < gap else "length")
        assert list(filled.tokens) == [*before, *tokens, *after]
        assert (filled.text[:2], filled.text[-2:]) == ("ab", "cd")
        lengths.append(len(tokens))
    assert min(lengths) < gap


def test_several_blanks_are_filled_one_after_the_other_whatever_else_is_in_the_batch(model):
    likelier = _likelier(model, 2)
    texts = ["ab[[..5]]cd[[2]]ef[[..6]]", "ab[[..9]]c", "[[..3]]a[[..4]]"]
    together = a3jax.infill_batch(likelier, texts, heal=False)
    for text, one in zip(texts, together):
        alone = a3jax.infill(likelier, text, heal=False)
        assert (alone.text, alone.tokens, alone.passes) == (one.text, one.tokens, one.passes)
        np.testing.assert_allclose(alone.log_probs, one.log_probs, atol=1e-5)
        assert all(len(blank.tokens) <= size for blank, size in zip(one.blanks, [5, 2, 6] if "ef" in text else [9, 4]))
        order = [p for p in one.passes if p]
        assert order == sorted(order), "from left to right"
    assert len(together[0].blanks[1].tokens) == 2
    # The last blank is what it is where all before it is given text, without a gap.
    before = [token for token, place in zip(together[0].tokens, range(together[0].places[-2].start))]
    tokens, _ = greedy_by_the_book(likelier, before, [], 6)
    assert list(together[0].blanks[2].tokens) == tokens


def test_a_prompt_ends_beside_an_open_blank_as_it_does_alone(model):
    likelier = _likelier(model, 2)
    texts = [Template(("ab", "cd"), (Open(6),)), Template(("ab", ""), (9,)), Template(("a", ""), (4,))]
    how = a3jax.Decoding(ends=True)
    together = a3jax.infill_batch(likelier, texts, [how] * 3)
    alone = [a3jax.infill(likelier, text, how) for text in texts]
    assert [(one.text, one.finished) for one in together] == [(one.text, one.finished) for one in alone]
    assert "stop" in {one.finished for one in alone[1:]}


def test_a_model_that_fills_in_the_middle_ends_a_blank_behind_the_text_around_it(model):
    """With and without `ends`, which a request of an open blank has; text that is continued has no middle."""
    gap, lengths = 7, []
    for seed in range(3):
        record = dataclasses.replace(model.record, objective="fim", fim_tokens=(70, 71, 72), blanks_end=False)
        likelier = dataclasses.replace(_likelier(model, seed), record=record)
        head, before = known(model, "", False), model.codec.encode("ab")
        tokens, log_probs = greedy_by_the_book(likelier, [*head, 70, *before, 71, *known(model, "cd", True), 72], [], gap)
        for ends in (False, True):
            filled = a3jax.infill(likelier, f"ab[[..{gap}]]cd", mode="fim", ends=ends, heal=False)
            assert list(filled.blanks[0].tokens) == tokens
            np.testing.assert_allclose(filled.blanks[0].log_prob, sum(log_probs), atol=1e-4)
            assert filled.text[-2:] == "cd"
        lengths.append(len(tokens))
    assert min(lengths) < gap
    with pytest.raises(UserError, match="mode fim is for blanks with text behind them"):
        a3jax.complete(likelier, ["ab"], mode="fim")


def test_the_last_blank_has_a_size_and_may_end_beside_one_that_has_none(model):
    likelier, ended = _likelier(model, 2), 0
    for text in ("ab[[..5]]cd[[9]]", "a[[3]]b[[..2]]c[[9]]"):
        filled = a3jax.infill(likelier, text, ends=True, heal=False)
        place = filled.places[-2]
        tokens, _ = greedy_by_the_book(likelier, filled.tokens[: place.start], [], 9)
        assert list(filled.blanks[-1].tokens) == tokens
        whole = a3jax.infill(likelier, text, heal=False)
        assert (whole.tokens[: place.start], len(whole.blanks[-1].tokens)) == (filled.tokens[: place.start], 9)
        ended += len(tokens) < 9
    assert ended
    with pytest.raises(UserError, match="text stands behind the last blank"):
        a3jax.infill(likelier, "ab[[..5]]cd[[9]]e", ends=True)


def test_sizes_to_choose_stand_beside_a_blank_without_one(model):
    for one in (model, dataclasses.replace(model, record=dataclasses.replace(model.record, blanks_end=False))):
        filled = a3jax.infill(one, "ab[[2-3]]cd[[..4]]ef", heal=False)
        assert len(filled.blanks[0].tokens) in (2, 3)
    with pytest.raises(UserError, match="has no sizes to choose"):
        a3jax.infill(model, "ab[[..4]]cd[[2-3]]", ends=True)
    with pytest.raises(UserError, match="revise is for blanks with a size"):
        a3jax.infill(model, "ab[[..4]]cd", revise=2)


def test_a_stop_string_ends_a_blank_and_is_no_part_of_it(model):
    text = a3jax.infill(model, "ab[[..8]]cd").blanks[0].text
    assert len(text) > 3
    stop = text[2:4]
    for more in ({}, {"ends": True}):
        filled = a3jax.infill(model, "ab[[..8]]cd", stop=(stop,), **more)
        assert filled.blanks[0].text == text[: text.index(stop)]
    assert filled.text == f"ab{filled.blanks[0].text}cd"
    assert filled.finished == "stop"


def test_a_model_that_knows_no_ends_tries_every_length(worded):
    chosen = a3jax.infill(worded, "ab[[1-5]]cd")
    found = a3jax.infill(worded, "ab[[..5]]cd")
    assert (found.text, found.log_prob) == (chosen.text, chosen.log_prob)
    with pytest.raises(UserError, match="stop is for blanks that end, which this model was not trained on"):
        a3jax.infill(worded, "ab[[..5]]cd", ends=True, stop=("x",))


@pytest.mark.parametrize("how", [{"mode": "dynamic"}, {"mode": "speculative"}, {"order": "random_1"}])
def test_a_blank_without_a_size_is_filled_from_left_to_right(model, how):
    with pytest.raises(UserError, match="does not fill from left to right, as a blank without a size must be"):
        a3jax.infill(model, "ab[[..5]]cd", **how)


def test_sizes():
    assert parse("a[[..12]]b[[3]]c[[2-4]]").sizes == (Open(12), 3, Range(2, 4))
    for text, message in [
        ("[[..]]", r"\[\[..\]\] is no blank"),
        ("[[..0]]", "blank of no tokens"),
        ("[[3..5]]", "is no blank"),
    ]:
        with pytest.raises(UserError, match=message):
            parse(text)
    with pytest.raises(UserError, match="a blank's size is Open"):
        Template(("a", "b"), (Open(0),))


def test_evaluations_fill_a_blank_whose_length_is_not_told_up_to_its_end(model):
    both, left = fillers(_likelier(model, 2), model, a3jax.Decoding())
    assert (both.ends_blanks, left.ends_blanks, fillers(model, model, a3jax.Decoding(mode="dynamic"))[0].ends_blanks) == (
        True,
        False,
        False,
    )
    blanked = Blanked("ab", "x", "cd")
    (found,) = both.fill([blanked], 2, Range(2, 7))
    assert found.text == a3jax.infill(both.model, "ab[[..7]]cd").blanks[0].text
