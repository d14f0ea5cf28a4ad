"""Filled texts as JSON: log-probabilities by token, and text that is streamed while it is on its way."""

import numpy as np
import pytest

import a3jax
from a3jax.serve import answers
from a3jax.serve.requests import Refused


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [(), ("\n", "e", "q")])
def test_tokens_and_their_log_probabilities(model, echo, stop):
    for seed in range(4):
        (filled,) = a3jax.complete(model, ["Ä b"], 20, seed=seed, temperature=1.0, stop=stop)
        text, scores = answers.completed(filled, echo), answers.logprobs(model.codec, filled, echo)
        assert text == "Ä b" * echo + filled.blanks[0].text
        assert "".join(scores["tokens"]) == text
        assert all(text[at:].startswith(token) for at, token in zip(scores["text_offset"], scores["tokens"]))
        known = [None] * 4 * echo  # one for each byte
        assert scores["token_logprobs"] == [*known, *filled.log_probs[5:]]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_streamed_is_never_taken_back(model, echo, seed):
    fillable_V, stops, shown = np.asarray(model.fillable), ("\n", "eq", "abc"), []
    echoed = "Ä b" * echo

    def observe(texts):
        shown.append(answers.begun(model.codec, fillable_V, texts[0], stops, echoed))

    (filled,) = a3jax.complete(model, ["Ä b"], 20, observe, seed=seed, temperature=1.5, stop=stops)
    whole = answers.completed(filled, echo)
    for earlier, later in zip(shown, [*shown[1:], whole]):
        assert later.startswith(earlier)
    assert len(shown[-1]) >= len(whole.rstrip("\ufffd")) - 2  # but for what may begin a stop string


@pytest.mark.parametrize("echo", [False, True])
def test_every_kind_of_tokenizer_is_streamed_as_it_ends(worded, echo):
    fillable_V, prompt = np.asarray(worded.fillable), " the \u4e2d"
    for seed in range(4):
        shown = []

        def observe(texts, shown=shown):
            shown.append(answers.begun(worded.codec, fillable_V, texts[0], (), prompt * echo))

        (filled,) = a3jax.complete(worded, [prompt], 20, observe, seed=seed, temperature=9.0)
        whole = answers.completed(filled, echo)
        assert whole.startswith(prompt * echo)
        for earlier, later in zip(shown, [*shown[1:], whole]):
            assert later.startswith(earlier)
        scores = answers.logprobs(worded.codec, filled, echo)
        assert "".join(scores["tokens"]) == whole
        assert len(scores["tokens"]) == filled.places[1].stop - filled.places[not echo].start


def test_a_text_that_ends_at_once_has_no_tokens(model):
    (filled,) = a3jax.complete(model, ["a"], 4, seed=0, temperature=1.0, stop=tuple(map(chr, range(32, 127))) + ("\ufffd",))
    for echo in (False, True):
        scores = answers.logprobs(model.codec, filled, echo)
        assert "".join(scores["tokens"]) == answers.completed(filled, echo) == "a" * echo + filled.blanks[0].text


def test_failures_have_openais_shape_and_show_nothing_of_ours():
    status, body, headers = answers.failure(Refused("x" * 9999 + "\ud800", "\ud800", 429, retry_after=3))
    assert (status, headers) == (429, {"Retry-After": "3"})
    assert body["error"] == {"message": "x" * 300, "type": "rate_limit_error", "param": "?", "code": None}
    assert answers.failure(a3jax.UserError("a mistake"))[:2] == (
        400,
        answers.error_body("a mistake", "invalid_request_error"),
    )
    status, body, _ = answers.failure(RuntimeError("secret"))
    assert status == 500
    assert "secret" not in body["error"]["message"]
