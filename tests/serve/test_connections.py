"""Clients that are slow, many, long-winded or dishonest: the service answers all others, and says truly who was there."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import time

import pytest
from serving import Server

from a3jax.errors import UserError
from a3jax.serve import connections

SOON = 3.0
"""Seconds, far above what the service takes for /health and far below what it took when it could be held up."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(model_folder):
    options = [
        "--max-client-seconds",
        "1.5",
        "--max-connections",
        "20",
        "--trusted-proxy",
        "127.0.0.0/8",
        "--max-queue",
        "64",
    ]
    with Server(model_folder, *options) as server:
        yield server


@pytest.fixture(scope="module")
def plain(model_folder):
    """Without options, and with leave to open few files."""
    with Server(model_folder, files=64) as server:
        yield server


def ended(connection):
    """Whether the service closes a connection by and by, read to its end."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(2**16):
            pass
    return True


def ask_while_it_is_taken(connection, asked, most=60):
    """Send on, for `most` seconds or until nothing of it is taken for 6."""
    begin = taken = time.monotonic()
    while time.monotonic() < min(taken + 6, begin + most):
        with contextlib.suppress(TimeoutError):
            connection.send(asked)
            taken = time.monotonic()


@pytest.mark.parametrize(
    ("begun", "drop"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b""),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a"),
        (b"", b"\r\n"),  # which may stand before a request
        (HEAD + b"Content-Length: 900\r\n\r\n{", b" "),
        (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{", b" "),  # is answered before its end
    ],
)
def test_a_request_has_limited_time(server, begun, drop):
    connections = [server.connect(begun) for _ in range(5)]
    deadline = time.monotonic() + 15
    open_ = [*connections]
    while open_:
        assert time.monotonic() < deadline
        for connection in [*open_]:
            connection.settimeout(0.05)
            try:
                connection.sendall(drop)
                if not connection.recv(2**16):
                    open_.remove(connection)
            except TimeoutError:
                pass
            except OSError:
                open_.remove(connection)
    for connection in connections:
        connection.close()
    assert server.healthy() < SOON


def test_a_body_that_does_not_come_is_answered(server):
    with server.connect(HEAD + b"Content-Length: 900\r\n\r\n{") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 408")
        assert ended(connection)


def test_who_uses_a_connection_keeps_it(server):
    """For longer than a request may take, and with a slow one among them."""
    with server.connect() as connection:
        for _ in range(4):
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            time.sleep(0.6)
            connection.sendall(b"Host: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(2**16) or pytest.fail("the connection was closed")


def test_an_answer_that_is_not_taken_ends_the_connection(server):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        connection.connect(("127.0.0.1", server.port))
        asked = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises((TimeoutError, ConnectionError)):  # the service reads no more while its answers are not taken
            connection.sendall(asked * 200_000)
        assert server.healthy() < SOON
        with pytest.raises(ConnectionError):  # soon after all that lies between the two is full
            ask_while_it_is_taken(connection, asked)


def test_too_many_connections_close_the_ones_that_wait_longest(server):
    asking = server.connect(HEAD)  # comes before all others, and is not used
    idle = [server.connect() for _ in range(60)]
    assert server.healthy() < SOON
    assert ended(asking)
    for connection in idle:
        connection.close()


def test_few_files_are_enough(plain):
    idle = [plain.connect() for _ in range(80)]
    assert plain.healthy() < SOON
    for connection in idle:
        connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections.resource, "getrlimit", lambda _: (20, 20))
        with pytest.raises(UserError, match="may open 20 files"):
            connections.room(256)


def test_headers_without_end_are_refused(server):
    headers = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:b\r\n" * 40_000
    with contextlib.suppress(ConnectionError), server.connect(headers + b"\r\n") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 400")
    assert server.healthy() < SOON


def test_requests_sent_at_once_are_all_answered_in_turn(server):
    with server.connect(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500 + b"GET /end HTTP/1.0\r\n\r\n"
    ) as connection:
        assert server.healthy() < SOON
        answers = b""
        while part := connection.recv(2**16):
            answers += part
    assert answers.count(b"HTTP/1.1 200") == 500
    assert b"HTTP/1.1 403" in answers  # the last one names no host


@pytest.mark.long
def test_long_bodies_hold_nobody_up(server):
    size = 2**20 - 100
    bodies = [
        b'{"prompt": [' + b'"",' * (size // 3 - 9) + b'""]}',
        b'{"text": [' + b'"[[1]]",' * (size // 8 - 9) + b'""]}',
        b'{"prompt": "' + b"aB1 " * (size // 4 - 9) + b'"}',
        b'{"' + b"max_tokens" * (size // 10 - 9) + b'": 1}',
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = ["/v1/infill" if b'"text"' in body else "/v1/completions" for body in bodies]
        sent = [
            pool.submit(server.send, "POST", path, body, {"Content-Type": "application/json"})
            for path, body in [*zip(paths, bodies)] * 2
        ]
        slowest = 0.0
        while not all(one.done() for one in sent):
            slowest = max(slowest, server.healthy())
            time.sleep(0.05)
        assert {one.result()[0] for one in sent} == {400}
    assert slowest < SOON


def test_the_log_says_who_was_there(plain, server):
    """What a client says of itself counts only where it is a trusted proxy, and no byte of it reaches the terminal raw.

    Runs after the others that use `plain`: it ends it.
    """
    for forwarded in ("6.6.6.6", "\x9b31m7.7.7.7"):
        assert server.send("GET", "/v1/models", headers={"X-Forwarded-For": forwarded})[0] == 200
    assert plain.send("GET", "/v1/models", headers={"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"})[0] == 200
    plain.send("GET", "/%1b[31m%0a1.2.3.4%20GET")
    with plain.connect(b"GET /\x9b31m HTTP/1.1\r\n\r\n") as connection:
        assert connection.recv(99).startswith(b"HTTP/1.1 400")
    plain.process.send_signal(signal.SIGTERM)
    assert plain.process.wait(60) == 0
    plain.reader.join()
    log = "".join(plain.log)
    assert "127.0.0.1 GET /v1/models 200" in log
    assert "6.6.6.6" not in log
    assert log.count("1.2.3.4") == log.count("/%1b[31m%0a1.2.3.4%20GET 404") == 1
    assert all(line.startswith("20") for line in plain.log)  # with date and time, uvicorn's lines too
    trusting = "".join(server.log)
    assert " 6.6.6.6 GET /v1/models 200" in trusting
    assert "7.7.7.7" in trusting
    assert "\x9b" not in trusting


STUCK = """
import time
from a3jax import cli
from a3jax.serve import batching

class Stuck(batching.Told):
    def join(self, number, template, decoding):
        if template.pieces[0] != ".":
            time.sleep(600)  # as a compilation, nothing can end it
        super().join(number, template, decoding)

batching.Told = Stuck
cli.main()
"""


@pytest.mark.long
def test_a_stop_does_not_wait_for_a_compilation(model_folder):
    options = ["--max-stop-seconds", "1", "--max-queue", "2", "--max-batch", "1", "--json"]
    with Server(model_folder, *options, program=("-c", STUCK)) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = pool.submit(server.post, "/v1/completions", prompt="a")
        time.sleep(1)  # until it runs
        waiting = [pool.submit(server.post, "/v1/completions", prompt="a") for _ in range(2)]
        time.sleep(1)
        assert server.post("/v1/completions", prompt="a")[0] == 429
        assert server.healthy() < SOON
        slow = server.connect(HEAD + b"Content-Length: 900\r\n\r\n{")
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert [one.result()[0] for one in (running, *waiting)] == [503] * 3
        assert server.process.wait(30) == 0
        assert time.monotonic() - begin < 15
        assert json.loads(server.process.stdout.read()) == {"texts": 0, "passes": 0}
        slow.close()
        server.reader.join()
        assert "Traceback" not in "".join(server.log)


@pytest.mark.long
def test_a_second_signal_ends_it_at_once(model_folder):
    with Server(model_folder, "--max-stop-seconds", "600", program=("-c", STUCK)) as server:
        asking = server.connect(HEAD + b'Content-Length: 15\r\n\r\n{"prompt": "a"}')
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == -signal.SIGTERM
        asking.close()
