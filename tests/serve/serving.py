"""A service in a process of its own, for the tests that meet it over sockets."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time


class Server:
    """A running server. Its programs are compiled as those of the tests, so that both draw the same tokens."""

    def __init__(self, folder, *options, program=("-m", "a3jax.cli"), files=None, environment=os.environ, key=None):
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        command = [sys.executable, *program, "serve", str(folder), "--port", "0", *options]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        environment = {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        self.process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment)
        first = self.process.stderr.readline()
        self.port = int(re.search(r"serving \S+ at http://[\d.]+:(\d+)", first)[1])
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        deadline = time.monotonic() + 120
        while self.get("/health")[0] != 200:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def send(self, method, path, body=None, headers=None):
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body, {**self.headers, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, response.headers, text

    def get(self, path):
        status, _, body = self.send("GET", path)
        return status, json.loads(body)

    def post(self, path, **fields):
        status, _, body = self.send("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        return status, json.loads(body)

    def stream(self, path, **fields):
        """The events of a stream, parsed but for one that is no object."""
        body, headers = json.dumps({**fields, "stream": True}), {"Content-Type": "application/json"}
        status, headers, text = self.send("POST", path, body, headers)
        assert (status, headers.get_content_type()) == (200, "text/event-stream"), text
        *events, rest = text.decode().split("\n\n")
        assert rest == ""
        words = [event.removeprefix("data: ") for event in events]
        return [json.loads(word) if word.startswith("{") else word for word in words]

    def connect(self, text=b""):
        """A connection on which `text` has been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(text)
        return connection

    def healthy(self):
        """Seconds until the service says that it is."""
        begin = time.monotonic()
        assert self.get("/health") == (200, {"status": "ok"})
        return time.monotonic() - begin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
