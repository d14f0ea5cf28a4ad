"""Bodies of requests: what they mean, and that whatever is not understood is refused by name."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Template
from a3jax.files.strict import build, plain
from a3jax.serve.completions import Completion
from a3jax.serve.editors import FillInMiddle, LlamaInfill
from a3jax.serve.limits import Limits
from a3jax.serve.requests import DECODING, Infill, Refused, Text, check, read_request

LIMITS = Limits(max_queue=6, max_tokens_per_request=1000)


def completion(**fields):
    return read_request(Completion, json.dumps(fields).encode())


def refusal(model, kind, body):
    with pytest.raises(Refused) as caught:
        read_request(kind, body if isinstance(body, bytes) else json.dumps(body).encode()).texts(LIMITS, model)
    return caught.value


def test_a_prompt_alone_has_openais_defaults(model):
    (text,) = completion(prompt="Once").texts(LIMITS, model)
    assert text.template == Template(("Once", ""), (16,))
    assert text.decoding == Decoding(temperature=1.0, ends=True, seed=text.decoding.seed)
    assert completion(prompt="Once").decoding.seed != text.decoding.seed  # drawn for each request


def test_each_sample_has_the_next_seed(model):
    texts = completion(prompt=["a", "b"], n=3, seed=7, max_tokens=4).texts(LIMITS, model)
    assert [text.template.pieces[0] for text in texts] == ["a", "a", "a", "b", "b", "b"]
    assert [text.decoding.seed for text in texts] == [7, 8, 9, 10, 11, 12]


def test_a_suffix_makes_a_blank_of_a_fixed_length(model):
    (text,) = completion(prompt="a", suffix="b", max_tokens=3, mode="speculative", drafts=2, seed=1).texts(LIMITS, model)
    assert text.template == Template(("a", "b"), (3,))
    assert text.decoding == Decoding(mode="speculative", drafts=2, temperature=1.0, seed=1)


def test_an_infill_is_a_template(model):
    request = read_request(Infill, b'{"text": "a [[3]] b [[2-4]]", "order": "random_2", "temperature": 0, "seed": 0}')
    assert request.texts(LIMITS, model) == [(Template(("a ", " b ", ""), (3, Range(2, 4))), Decoding(order="random_2"))]


def test_what_other_processes_are_told_of_a_text_is_all_of_it():
    for text in (
        Text(Template(("a ", " b ", "", "c"), (3, Range(2, 4), Open(8)), whole=True), Decoding(order="random_2", seed=7)),
        Text(Template(("", ""), (1,)), Decoding(mode="speculative", temperature=0.1, stop=("x", "y"), ends=True)),
    ):
        template, decoding = json.loads(json.dumps(plain(text)))
        assert Text(build(Template, template, "told"), build(Decoding, decoding, "told")) == text


def test_every_choice_of_decoding_can_be_made():
    assert {*DECODING, "stop", "ends"} == {field.name for field in dataclasses.fields(Decoding)}


def test_null_and_values_that_ask_for_nothing_are_as_if_absent():
    nothing = {"suffix": None, "stop": None, "logprobs": None, "top_p": None, "presence_penalty": 0, "best_of": 1}
    request = completion(prompt="a", seed=0, logit_bias={}, frequency_penalty=0.0, user="me", **nothing)
    assert dataclasses.replace(request, user="") == completion(prompt="a", seed=0)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"promt": "a"}, "promt", "unknown field 'promt'; did you mean 'prompt'?"),
        ({}, "prompt", "field 'prompt' is missing"),
        ({"prompt": None}, "prompt", "field 'prompt' is missing"),
        ({"prompt": 5}, "prompt", "prompt is 5; expected str"),
        ({"prompt": ["a", 5]}, "prompt", "prompt[1] is 5; expected str"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": ["a", [5, "b"]]}, "prompt", "prompt[1][1] is 'b'; expected int"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "suffix": "b"}, "max_tokens", "no suffix"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "expected int"),
        ({"prompt": "a", "max_tokens": 1001}, "max_tokens", "at most 1000"),
        ({"prompt": "a", "max_tokens": 400, "n": 3}, "n", "at most 1000"),
        ({"prompt": "a", "n": 10**12}, "n", "at most 6"),
        ({"prompt": ["a"] * 7}, "prompt", "at most 6"),
        ({"prompt": "a", "n": 0}, "n", "at least 1"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"prompt": "a", "temperature": -1}, "temperature", "0 (the most probable token) or more"),
        ({"prompt": "a", "temperature": float("nan")}, None, "NaN is no number of JSON"),
        ({"prompt": "a", "temperature": 10**400}, "temperature", "expected float"),
        ({"prompt": "a", "top_p": 0}, "top_p", "above 0"),
        ({"prompt": "a", "seed": 2**32 - 1, "n": 2}, "seed", f"below {2**32}"),
        ({"prompt": "a", "mode": "dynamc"}, "mode", "did you mean 'dynamic'?"),
        ({"prompt": "a", "order": "in_order_²"}, "order", "is unknown"),
        ({"prompt": "a", "order": "in_order_" + "9" * 5000}, "order", "is unknown"),
        ({"prompt": "a", "order": "random_99", "max_tokens": 99}, "order", "predicts 99 tokens at once; at most 64"),
        ({"prompt": "a", "mode": "dynamic", "window": 65, "max_tokens": 65}, "window", "at most 64"),
        ({"prompt": "a", "mode": "resample", "max_tokens": 65}, "mode", "predicts 65 tokens at once; at most 64"),
        ({"prompt": "a", "drafts": 2}, "drafts", "belongs to mode speculative"),
        ({"prompt": "a", "stop": list("abcdefghijklmnopq")}, "stop", "at most 16"),
        ({"prompt": "a", "stop": ""}, "stop", "at least one character"),
        ({"prompt": "a", "suffix": "b", "stop": ["c", ""]}, "stop", "at least one character"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "for streams"),
        ({"prompt": "a", "stream": True, "stream_options": {"usage": True}}, "stream_options", "unknown field 'usage'"),
        ({"prompt": "a", "revise": 2}, "revise", "text behind them"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "use repetition_penalty instead"),
        ({"prompt": "a", "logit_bias": {"1": 1}}, "logit_bias", "not supported"),
        ({"prompt": "a", "stream": True, "order": "random_2"}, "stream", "left to right"),
        ({"prompt": "a", "stream": True, "mode": "dynamic"}, "stream", "left to right"),
        ({"prompt": "a", "stream": True, "logprobs": 0}, "logprobs", "not streamed"),
        ({"prompt": "\ud800"}, None, "half of a surrogate pair"),
    ],
)
def test_refused_completions(model, fields, param, message):
    refused = refusal(model, Completion, fields)
    assert (refused.http, refused.param) == (400, param)
    assert message in str(refused)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"text": "no blank"}, "text", "no blank"),
        ({"text": "[[" + " " * 300_000}, "text", "no blank"),  # found without trying every way to cut the spaces
        ({"text": "[[1000000]]"}, "text", "must be below 1000000"),
        ({"text": "a [[999999]]"}, "text", "asks for 999999 tokens"),
        ({"text": "a [[1-40]]"}, "text", "asks for 1640 tokens"),  # every length is tried
        ({"text": "a [[8]]", "revise": 64}, None, None),
        ({"text": "a [[100]]", "revise": 64}, "text", "asks for 1124 tokens"),
        ({"text": "a [[8]]", "stream": True}, "stream", "unknown field 'stream'"),
        ({"text": "a [[8]]", "max_tokens": 8}, "max_tokens", "unknown field 'max_tokens'"),
        ({"text": "a [[8]]", "stop": "b"}, "stop", "text that is continued"),
    ],
)
def test_refused_infills(model, fields, param, message):
    if message is None:
        assert read_request(Infill, json.dumps(fields).encode()).texts(LIMITS, model)
        return
    refused = refusal(model, Infill, fields)
    assert refused.param == param
    assert message in str(refused)


def test_each_text_of_a_request_is_filled_as_it_is_alone(model):
    """Whether a blank may end, and where, follows from the text that it stands in, not from those beside it."""
    knows = dataclasses.replace(model, record=dataclasses.replace(model.record, blanks_end=True))
    fields = {"text": ["a [[4]] b", "c [[..4]] d", "e [[5]]"], "stop": ["x"], "seed": 0}
    texts = read_request(Infill, json.dumps(fields).encode()).texts(LIMITS, knows)
    assert [text.decoding.stop for text in texts] == [(), ("x",), ()]
    assert not any(text.decoding.ends for text in texts)
    for text in texts:
        check(knows, text, "text", "text")
    with pytest.raises(Refused, match="this model was not trained on") as caught:
        check(model, texts[1], "text", "text")
    assert caught.value.param == "stop"
    (revised,) = read_request(Infill, b'{"text": "a [[..4]] b", "revise": 2}').texts(LIMITS, knows)
    with pytest.raises(Refused, match="revise is for blanks with a size") as caught:
        check(knows, revised, "text", "text")
    assert caught.value.param == "revise"
    check(model, revised, "text", "text")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{", b"\xff\xfe\xfa", b'{"prompt": "\xff"}', b"[" * 200_000, b"1" * 9000]
)
def test_what_is_no_object_is_refused(model, body):
    assert refusal(model, Completion, body).http == 400


def test_texts_that_do_not_fit_are_found_before_they_reach_a_batch(model):
    def checked(pieces, size, model=model):
        check(model, Text(Template(pieces, (size,)), Decoding()), "prompt", "max_tokens")

    checked(("a" * 40, "b" * 13), 10)  # with the start token, the context of 64
    for pieces, size, param in [
        (("a" * 40, "b" * 14), 10, "max_tokens"),
        (("a" * 64, ""), 1, "prompt"),
        (("", ""), 10**6, "max_tokens"),
    ]:
        with pytest.raises(Refused, match="context only 64") as caught:
            checked(pieces, size)
        assert caught.value.param == param
    checked(("", ""), 4)
    without = dataclasses.replace(model, codec=dataclasses.replace(model.codec, start=None, bos=None, end=None))
    with pytest.raises(Refused, match="give some text first"):
        checked(("", ""), 4, without)


def test_prompts_of_tokens_are_their_text(model):
    ids = model.codec.encode("Zo\u00eb said")
    for prompt in (ids, [model.codec.start, *ids], [ids, [*ids]]):
        texts = completion(prompt=prompt).texts(LIMITS, model)
        assert {text.template.pieces for text in texts} == {("Zo\u00eb said", "")}
    for prompt, message in [([999], "holds token 999"), (ids[2:3], "of no text")]:
        with pytest.raises(Refused, match=message) as caught:
            completion(prompt=prompt).texts(LIMITS, model)
        assert caught.value.param == "prompt"


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["[[3]]", "[[2-3]]", "ar"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [*DECODING, *(f.name for kind in (Completion, Infill, LlamaInfill) for f in dataclasses.fields(kind))]
)


@settings(max_examples=300)
@given(
    body=JUNK | st.dictionaries(NAMES, JUNK, max_size=4),
    kind=st.sampled_from([Completion, Infill, FillInMiddle, LlamaInfill]),
)
def test_anything_else_is_refused_too(model, body, kind):
    with contextlib.suppress(Refused):
        request = read_request(kind, json.dumps(body).encode())
        assert len(request.texts(LIMITS, model)) <= LIMITS.max_queue
