"""What a text is worth to a model: log-likelihoods of texts, of what fills a template, and of batches, in any order."""

import numpy as np
import pytest

import a3jax
from a3jax.errors import UserError


def test_log_likelihood_of_text(model):
    score = a3jax.log_likelihood(model, "area")
    assert score.tokens == tuple(model.codec.encode("area"))
    assert score.total == pytest.approx(sum(score.log_probs), abs=1e-4)
    assert all(log_prob < 0 for log_prob in score.log_probs)
    # The chain rule over the text itself, left to right.
    parts = [a3jax.log_likelihood(model, f"{'area'[:i]}[[1]]", blanks=["area"[i]]).total for i in range(4)]
    np.testing.assert_allclose(parts, score.log_probs, atol=1e-4)
    other = a3jax.log_likelihood(model, "area", order="random_1", seed=1)
    assert other.tokens == score.tokens
    assert other.total != pytest.approx(score.total, abs=1e-3)


def test_log_likelihood_of_what_fills_a_template(model):
    filled = a3jax.infill(model, "x = [[1]]\n", order="ar")
    text = filled.blanks[0].text
    if filled.blanks[0].tokens == tuple(model.codec.encode(text)):
        assert a3jax.log_likelihood(model, "x = [[1]]\n", blanks=[text]).total == pytest.approx(filled.log_prob, abs=1e-4)
    longer = a3jax.log_likelihood(model, "x = [[1]]\n", blanks=["y + 1"])
    assert longer.tokens == tuple(model.codec.encode("y + 1"))


def test_scores_of_several_orders(model):
    each = [a3jax.log_likelihood(model, "area of r", order="random_2", seed=3 + i) for i in range(4)]
    mean = a3jax.log_likelihood(model, "area of r", order="random_2", seed=3, orders=4)
    assert mean.totals == pytest.approx([one.total for one in each], abs=1e-4)
    assert mean.total == pytest.approx(np.mean(mean.totals))
    assert mean.spread == pytest.approx(np.std(mean.totals, ddof=1))
    np.testing.assert_allclose(mean.log_probs, np.mean([one.log_probs for one in each], axis=0), atol=1e-5)
    assert each[0].spread == 0


def test_scores_of_a_batch_are_those_of_each_text(model):
    texts = ["area", "a much longer text than the first one, of more than a bucket", *"abcdefgh", "r"]
    batch = a3jax.log_likelihoods(model, texts, order="random_2", orders=2)
    for text, score in zip(texts, batch):
        alone = a3jax.log_likelihood(model, text, order="random_2", orders=2)
        assert score.tokens == alone.tokens
        assert score.totals == pytest.approx(alone.totals, abs=1e-4)


def test_groups_may_be_given_by_hand(model):
    tokens = (256, *model.codec.encode("area"))
    given = [True, False, False, False, False]
    left_to_right = a3jax.token_log_likelihood(model, tokens, given, groups=[0, 5, 10, 11, 100])
    assert left_to_right.total == pytest.approx(a3jax.log_likelihood(model, "area").total, abs=1e-4)
    at_once = a3jax.token_log_likelihood(model, tokens, given, groups=[0, 1, 1, 1, 1])
    whole = a3jax.token_log_likelihood(model, tokens, given, order="random_1000")
    assert at_once.total == pytest.approx(whole.total, abs=1e-4)
    with pytest.raises(UserError, match="5 tokens but 2 groups"):
        a3jax.token_log_likelihood(model, tokens, given, groups=[0, 1])


def test_a_blank_is_scored_as_it_stands_in_its_text(worded):
    codec = worded.codec
    text = ("The sun", " had set", " behind the hills")
    score = a3jax.log_likelihood(worded, f"{text[0]}[[1]]{text[2]}", blanks=[text[1]], heal=False)
    assert list(score.tokens) == codec.encode(text[1], inside=True)
    assert codec.decode(list(score.tokens), inside=True) == text[1]
    # At the end of a text, cut where its tokens are, a blank has the likelihood that the whole text has there.
    whole = a3jax.log_likelihood(worded, "".join(text))
    ids = codec.encode("".join(text))
    for cut in range(1, len("".join(text))):
        before, rest = "".join(text)[:cut], "".join(text)[cut:]
        if codec.encode(before) + codec.encode(rest, inside=True) == ids:
            end = a3jax.log_likelihood(worded, f"{before}[[1]]", blanks=[rest], heal=False)
            assert end.total == pytest.approx(sum(whole.log_probs[-len(end.tokens) :]), abs=1e-4)
            break
    else:
        raise AssertionError("nowhere is the text cut between two of its tokens")
