"""`a3jax serve` as its users meet it: one process, and HTTP over a socket."""

import http.client
import json
import re
import signal
import socket
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Server

import a3jax
from a3jax.cli import main

BODY_BYTES = 4000


@pytest.fixture(scope="module")
def server(model_folder):
    options = ["--max-queue", "8", "--max-batch", "4", "--max-body-bytes", str(BODY_BYTES), "--json"]
    server = Server(model_folder, *options)
    yield server
    server.process.kill()
    server.process.wait()


def test_completions(server, model):
    status, answer = server.post("/v1/completions", prompt=["Once", "Twice"], n=2, max_tokens=8, seed=3, logprobs=0, stop="a")
    assert status == 200
    alone = a3jax.complete(model, ["Once", "Once", "Twice", "Twice"], 8, seed=3, temperature=1.0, stop=("a",))
    assert answer["object"] == "text_completion"
    assert answer["model"] == "model"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [one.blanks[0].text for one in alone]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [one.finished for one in alone]
    for choice, one in zip(answer["choices"], alone):
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([*one.log_probs[-len(one.blanks[0].tokens) :]], abs=1e-4)
    written = sum(len(one.blanks[0].tokens) for one in alone)
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": written, "total_tokens": 11 + written}


def test_a_suffix_and_blanks(server, model):
    _, answer = server.post("/v1/completions", prompt="a", suffix="b", max_tokens=5, seed=1, temperature=0, echo=True)
    alone = a3jax.infill(model, "a[[5]]b", seed=1)
    assert answer["choices"][0]["text"] + "b" == alone.text
    assert answer["choices"][0]["finish_reason"] == "length"
    _, answer = server.post("/v1/infill", text="a [[3]] b [[2]]", order="random_4", seed=1, logprobs=0)
    alone = a3jax.infill(model, "a [[3]] b [[2]]", order="random_4", seed=1, temperature=1.0)
    (choice,) = answer["choices"]
    assert choice["text"] == alone.text
    assert [blank["text"] for blank in choice["blanks"]] == [blank.text for blank in alone.blanks]
    assert [blank["logprob"] for blank in choice["blanks"]] == pytest.approx([b.log_prob for b in alone.blanks], abs=1e-4)


def test_streaming(server):
    fields = {"prompt": ["Once", "Twice"], "max_tokens": 8, "seed": 3}
    _, whole = server.post("/v1/completions", **fields)
    body, headers = json.dumps({**fields, "stream": True}), {"Content-Type": "application/json"}
    status, headers, text = server.send("POST", "/v1/completions", body, headers)
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    *events, done, rest = text.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert len(choices) > 4
    for whole_choice in whole["choices"]:
        parts = [choice for choice in choices if choice["index"] == whole_choice["index"]]
        assert "".join(part["text"] for part in parts) == whole_choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [whole_choice["finish_reason"]]


def test_models(server):
    assert server.get("/v1/models")[1]["data"][0]["id"] == "model"
    assert server.post("/v1/completions", prompt="a", model="model", max_tokens=1)[0] == 200
    status, answer = server.post("/v1/completions", prompt="a", model="gpt", max_tokens=1)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "headers"),
    [
        (400, "POST", "/v1/completions", b"{", {}),
        (400, "POST", "/v1/completions", b'{"prompt": "a", "prompt": "b"}', {}),
        (400, "POST", "/v1/completions", b'{"prompt": "\xff"}', {}),
        (400, "POST", "/v1/completions", b'{"prompt": "%s"}' % (b"a" * 99), {}),  # beyond the context
        (400, "POST", "/v1/infill", b'{"text": "[[999999]]"}', {}),
        (400, "POST", "/v1/infill", b'{"text": "%s"}' % (b"[[1]]" * 99), {}),
        (404, "POST", "/v1/embeddings", b"{}", {}),
        (400, "POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}]}', {}),  # it has no template
        (404, "GET", "/v1/completions/", None, {}),
        (405, "GET", "/v1/completions", None, {}),
        (405, "OPTIONS", "/v1/completions", None, {"Origin": "http://evil.example"}),
        (413, "POST", "/v1/completions", b'{"prompt": "%s"}' % (b"a" * BODY_BYTES), {}),
        (413, "POST", "/v1/completions", iter([b"a" * 1000] * 9), {}),  # chunked
        (413, "POST", "/v1/completions", iter([b"a" * BODY_BYTES] * 15), {}),
        (413, "POST", "/v1/completions", b"{}", {"Content-Length": str(10**11)}),  # the rest is not waited for
        (415, "POST", "/v1/completions", b'{"prompt": "a"}', {"Content-Type": "text/plain"}),
        (403, "GET", "/v1/models", None, {"Host": "evil.example"}),
        (403, "GET", "/v1/models", None, {"Host": "[evil"}),
    ],
)
def test_errors(server, status, method, path, body, headers):
    got, answered, text = server.send(method, path, body, {"Content-Type": "application/json", **headers})
    assert got == status, text
    assert json.loads(text)["error"].keys() == {"message", "type", "param", "code"}
    assert not any(name.lower().startswith("access-control") for name in answered)
    assert server.get("/health") == (200, {"status": "ok"})


def test_bytes_that_are_no_http(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(99).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    assert server.get("/health")[0] == 200


def test_too_many_at_once(server):
    """Each request fills the queue, and there is no time for one batch between them."""
    together, statuses = threading.Barrier(8), []

    def client():
        together.wait()
        body = json.dumps({"prompt": "a", "n": 8, "max_tokens": 16})
        status, headers, _ = server.send("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        assert status == 200 or int(headers["Retry-After"]) >= 1
        statuses.append(status)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert {*statuses} == {200, 429}
    assert len(statuses) == 8
    assert server.post("/v1/completions", prompt="a", n=9)[0] == 400  # could never be served


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=9) | st.sampled_from(["a [[2]]", "ar"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    ["model", "n", "max_tokens", "stop", "suffix", "seed", "temperature", "top_k", "echo", "stream", "mode"]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/completions", "/v1/infill"]),
    body=JUNK | st.dictionaries(FIELDS, JUNK, max_size=2).map(lambda fields: {"prompt": "a", **fields}),
)
def test_any_json_is_answered(server, path, body):
    status, _, text = server.send("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    assert status == 200 or (400 <= status < 500 and json.loads(text)["error"]["message"])


def test_stopping_finishes_what_runs(server):
    """Runs last: it ends the server."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = json.dumps({"prompt": "a", "max_tokens": 20, "seed": 3, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    begun = response.readline()
    server.process.send_signal(signal.SIGTERM)
    assert begun.startswith(b"data: {")
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert server.process.wait(60) == 0
    assert json.loads(server.process.stdout.read()).keys() == {"texts", "passes"}
    server.reader.join()
    log = "".join(server.log)
    assert "Traceback" not in log
    assert re.search(r"127\.0\.0\.1 POST /v1/completions 200 \d+\.\d\d s\n", log)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere", "--port", "0"], "nowhere does not exist"),
        (["nowhere", "--port", "70000"], "--port is 70000"),
        (["nowhere", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1 port 8000"),
        (["nowhere", "--max-batch", "0"], "--max-batch is 0"),
        (["nowhere", "--host", ""], "--host is empty"),
    ],
)
def test_a_mistake_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "a3jax.serve.server", raising=False)
    with pytest.raises(SystemExit):
        main(["serve", "nowhere"])
    assert capsys.readouterr().err == "a3jax: the service needs the package uvicorn; pip install 'a3jax[serve]'\n"
