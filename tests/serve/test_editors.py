"""What editors and OpenAI's clients ask of a service, by the requests that they send."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server

import a3jax
from a3jax.cli import main
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Template
from a3jax.serve.access import Access, read_keys
from a3jax.serve.editors import FillInMiddle, LlamaInfill, fitted
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, read_request

KEY = "a-key-of-this-test"
LLAMA_VIM = {
    "input_prefix": "def f(a):\n",
    "input_suffix": "\n",
    "input_extra": [{"text": "x = 1", "time": 12.5, "filename": "a.py"}],
    "prompt": "    r",
    "n_predict": 8,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 100_000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_per_second", "truncated", "no/such"],
}
CONTINUE = {"prompt": "def f(", "suffix": "): ...", "max_tokens": 6, "temperature": 0.2, "top_p": 0.9, "random_seed": 3}


def asked(kind, fields, model, **record):
    model = dataclasses.replace(model, record=dataclasses.replace(model.record, **record))
    (text,) = read_request(kind, json.dumps(fields).encode()).texts(Limits(), model)
    return text.template.sizes[0], dataclasses.replace(text.decoding, seed=0)


def test_an_answer_ends_as_the_model_knows(model):
    """By the end of a blank, as a model that fills in the middle, or after the most probable number of tokens."""
    for kind, fields in [(LlamaInfill, LLAMA_VIM), (FillInMiddle, CONTINUE | {"temperature": 0})]:
        fields, most = fields | {"top_p": 1, "stop": ["q"]}, fields.get("n_predict", 6)
        fields.pop("top_k", None)
        assert asked(kind, fields, model) == (Range(1, most), Decoding())
        assert asked(kind, fields | {"heal": False}, model) == (Range(1, most), Decoding(heal=False))
        up_to = Decoding(stop=("q",))
        assert asked(kind, fields, model, blanks_end=True) == (Open(most), up_to)
        fim = {"objective": "fim", "fim_tokens": (1, 2, 3)}
        assert asked(kind, fields, model, **fim) == (Open(most), dataclasses.replace(up_to, mode="fim"))
        alone = {name: value for name, value in fields.items() if "suffix" not in name}
        for record in ({}, {"blanks_end": True}, fim):
            assert asked(kind, alone, model, **record) == (most, dataclasses.replace(up_to, ends=True))


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (LlamaInfill, {"n_predict": -2}, "n_predict"),
        (LlamaInfill, {"n": 2}, "n"),
        (LlamaInfill, {"grammar": "x"}, "grammar"),
        (LlamaInfill, {"input_extra": [{"txt": "x"}]}, "input_extra"),
        (FillInMiddle, {}, "prompt"),
        (FillInMiddle, {"prompt": "a", "min_tokens": 3}, "min_tokens"),
        (FillInMiddle, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (FillInMiddle, {"prompt": "a", "logprobs": 1}, "logprobs"),
    ],
)
def test_what_is_refused(model, kind, fields, param):
    with pytest.raises(Refused) as caught:
        read_request(kind, json.dumps(fields).encode()).texts(Limits(), model)
    assert caught.value.param == param


def test_what_is_farthest_from_the_cursor_is_left_out(model):
    """The model has 64 places; beside an answer of 16 and 8 to spare there is room for 40 bytes of text."""
    assert fitted(model, "a" * 30, "b" * 10, 16) == ("a" * 30, "b" * 10, False)
    assert fitted(model, "a" * 30, "b" * 10, 16, "c" * 9) == ("a" * 30, "b" * 10, True)
    assert fitted(model, "a" * 20, "b" * 10, 16, "c" * 15) == ("c" * 10 + "a" * 20, "b" * 10, True)
    assert fitted(model, "x\n" * 50, "b" * 99, 16) == ("x\n" * 14 + "x\n", "b" * 10, True)
    assert fitted(model, "a", "\u00eb" * 99, 16) == ("a", "\u00eb" * 19, True)
    with pytest.raises(Refused, match="no room"):
        fitted(model, "a", "b", 60)


def test_lines_with_less_indent_end_an_answer():
    request = LlamaInfill(decoding=Decoding(), n_indent=4)
    assert request.certain("a\n    b\n\n     c\n  d\n    e") == ("a\n    b\n\n     c", True)
    assert request.certain("a\n    b\n  ") == ("a\n    b\n  ", False)


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """The model with a chat template."""
    copy = shutil.copytree(model_folder, tmp_path_factory.mktemp("chats") / "model")
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"another-key-that-nobody-uses\n\n{KEY}\n")
    with Server(folder, "--api-key", str(file), key=KEY) as server:
        yield server


def test_llama_vim(server, model):
    status, answer = server.post("/infill", **LLAMA_VIM)
    alone = a3jax.infill(model, Template(("x = 1\n\ndef f(a):\n    r", "\n"), (Range(1, 8),)))
    assert (status, answer["content"]) == (200, alone.blanks[0].text)
    assert answer.keys() == {*LLAMA_VIM["response_fields"]} - {"no/such"}
    assert (answer["truncated"], answer["timings/prompt_n"]) == (False, sum(alone.given))
    assert server.post("/infill", **LLAMA_VIM | {"n_predict": 0})[1]["content"] == ""


def test_llama_vscode_and_streams(server):
    fields = {name: value for name, value in LLAMA_VIM.items() if name not in ("response_fields", "stream", "input_suffix")}
    _, answer = server.post("/infill", **fields)
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"] <= 8
    *pieces, last = server.stream("/infill", **fields)
    assert "".join(piece["content"] for piece in [*pieces, last]) == answer["content"]
    assert [piece["stop"] for piece in [*pieces, last]] == [False] * len(pieces) + [True]


def test_continue(server, model):
    status, answer = server.post("/v1/fim/completions", **CONTINUE)
    (choice,) = answer["choices"]
    chosen = {"seed": 3, "temperature": 0.2, "top_p": 0.9}
    alone = a3jax.infill(model, Template(("def f(", "): ..."), (Range(1, 6),)), **chosen)
    assert (status, choice["message"]) == (200, {"role": "assistant", "content": alone.blanks[0].text})
    *events, done = server.stream("/v1/fim/completions", **CONTINUE)
    assert done == "[DONE]"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == alone.blanks[0].text
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_chats(server, folder):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
    fields = {"messages": messages, "max_completion_tokens": 6, "seed": 3, "stop": "q"}
    status, answer = server.post("/v1/chat/completions", **fields)
    model, plain = a3jax.load(str(folder)), [messages[0], {"role": "user", "content": "Hello?"}]
    said = a3jax.chat(model, plain, 6, seed=3, temperature=1.0, stop=("q",))
    assert said.text.startswith("system: Be kind.\nuser: Hello?\nA:")
    (choice,) = answer["choices"]
    assert (status, answer["object"], choice["message"]["role"]) == (200, "chat.completion", "assistant")
    assert (choice["message"]["content"], choice["finish_reason"]) == (said.blanks[0].text, said.finished)
    *events, done = server.stream("/v1/chat/completions", **fields)
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == said.blanks[0].text
    assert (events[0]["choices"][0]["delta"]["role"], done) == ("assistant", "[DONE]")
    _, longer = server.post("/v1/chat/completions", messages=messages, seed=3)  # as much as there is room for
    assert longer["usage"]["total_tokens"] <= model.config.context
    for wrong, param in [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "messages"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages"),
        (messages * 9, "messages"),
    ]:
        status, answer = server.post("/v1/chat/completions", messages=wrong)
        assert (status, answer["error"]["param"]) == (400, param), wrong
    assert server.post("/v1/chat/completions", messages=messages, max_tokens=60)[1]["error"]["param"] == "max_tokens"


def test_stop_strings_cut_a_blank_with_text_behind_it(server):
    fields = {"prompt": "a", "suffix": "b", "max_tokens": 12, "seed": 1}
    _, whole = server.post("/v1/completions", **fields)
    text = whole["choices"][0]["text"]
    _, answer = server.post("/v1/completions", **fields, stop=text[3:5], logprobs=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(text[3:5])], "stop")
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    events = server.stream("/v1/completions", **fields, stop=text[3:5])
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == choice["text"]


def test_usage_at_the_end_of_a_stream(server):
    fields = {"prompt": ["Once", "Twice"], "n": 2, "max_tokens": 5, "seed": 3}
    _, whole = server.post("/v1/completions", **fields)
    *events, last, _ = server.stream("/v1/completions", **fields, stream_options={"include_usage": True})
    assert {str(event["usage"]) for event in events} == {"None"}
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_one_model_by_its_name(server):
    assert server.get("/v1/models/model") == (200, server.get("/v1/models")[1]["data"][0])
    status, answer = server.get("/v1/models/an/other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_prompts_that_are_scored(server, model):
    """As harnesses ask for likelihoods: nothing is written, and the prompt comes back with its log-probabilities."""
    ids = model.codec.encode("Once upon")
    _, answer = server.post("/v1/completions", prompt=[model.codec.start, *ids], max_tokens=0, echo=True, logprobs=2)
    (choice,) = answer["choices"]
    scores, expected = choice["logprobs"], a3jax.log_likelihood(model, "Once upon")
    assert (choice["text"], "".join(scores["tokens"])) == ("Once upon", "Once upon")
    assert scores["token_logprobs"] == pytest.approx(list(expected.log_probs), abs=1e-4)
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    for token, log_prob, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"]):
        assert 1 <= len(top) <= 3
        assert top[token] == pytest.approx(log_prob)
        assert max(top.values()) >= log_prob
    _, written = server.post("/v1/completions", prompt="Once upon", max_tokens=3, echo=True, logprobs=2, seed=1)
    more = written["choices"][0]["logprobs"]
    assert more["token_logprobs"][:9] == pytest.approx(scores["token_logprobs"])
    assert len(more["top_logprobs"]) == len(more["tokens"]) == 12
    assert server.post("/v1/completions", prompt="a" * 99, max_tokens=0, echo=True, logprobs=1)[0] == 400


def test_only_those_with_a_key_are_answered(server):
    body, json_ = json.dumps({"prompt": "a", "max_tokens": 1}), {"Content-Type": "application/json"}
    for headers, status in [
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"Authorization": "none", "X-Api-Key": "another-key-that-nobody-uses"}, 200),
        ({"Authorization": ""}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": "Bearer \u00eb"}, 401),
    ]:
        got, answered, text = server.send("POST", "/v1/completions", body, {**json_, **headers})
        assert got == status, headers
        if status == 401:
            assert json.loads(text)["error"]["code"] == "invalid_api_key"
            assert answered["WWW-Authenticate"] == "Bearer"
    assert server.send("GET", "/health", None, {"Authorization": ""})[0] == 200
    assert KEY not in "".join(server.log)


def test_openais_client(server):
    pytest.importorskip("openai", reason="the package openai is not installed")
    program = Path(__file__).parents[2] / "benchmarks" / "openai_client.py"
    subprocess.run([sys.executable, program, f"http://127.0.0.1:{server.port}", KEY], check=True, timeout=120)


@pytest.mark.long
def test_openais_client_of_npm(server):
    """NODE_PATH is where npm put it, if that is no folder above this one."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('openai')"], capture_output=True).returncode:
        pytest.skip("Node.js, or its package openai, is not installed")
    program = Path(__file__).parents[2] / "benchmarks" / "openai_client.cjs"
    subprocess.run([node, program, f"http://127.0.0.1:{server.port}", KEY], check=True, timeout=120)


def test_keys_of_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("A3JAX_API_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("A3JAX_API_KEY", "of-the-environment")
    assert read_keys(None) == ("of-the-environment",)
    assert Access().admits([])
    access = Access(("first-key", "second-key"))
    assert access.admits([(b"x-api-key", b"second-key")])
    assert not access.admits([(b"x-api-key", b"second"), (b"host", b"first-key")])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, ["--host", "0.0.0.0"], "give --api-key FILE, set A3JAX_API_KEY, or say --open"),
        (None, ["--api-key", "nowhere"], "--api-key nowhere: No such file or directory"),
        ("\n", ["--api-key", "file"], "--api-key file holds no key"),
        ("short\n", ["--api-key", "file"], "fewer than 8 letters"),
        ("of two words\n", ["--api-key", "file"], "fewer than 8 letters"),
    ],
)
def test_a_mistake_with_keys_is_one_line(content, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("A3JAX_API_KEY", raising=False)
    if content is not None:
        Path("file").write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["serve", "nowhere", "--port", "0", *options])
    printed = capsys.readouterr().err
    assert (stop.value.code, printed.count("\n")) == (2, 1)
    assert message in printed
