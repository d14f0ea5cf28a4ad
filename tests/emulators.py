"""Buckets on this machine: gcp-storage-emulator for gs:// and moto for s3://, on loopback, with trouble on request.

    python tests/emulators.py PORT      until it is killed

To gcp-storage-emulator is added what Google's service does and it does not: writes that only happen where the generation is
the one that was named, the last bytes of an object, lists of a range of names, and several requests at a time.
"""

import contextlib
import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # as a3jax sets it before gcsfs is imported
for library in ("gcsfs", "s3fs", "moto"):
    pytest.importorskip(library)
exceptions, server, storage = (
    pytest.importorskip(f"gcp_storage_emulator.{name}") for name in ("exceptions", "server", "storage")
)
buckets = pytest.importorskip("gcp_storage_emulator.handlers.buckets")

logging.getLogger("werkzeug").setLevel(logging.ERROR)
logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
BUCKET = "bucket"
Trouble = Callable[[str, str], int | None]
"""From method and path to an HTTP status to answer with, 0 to cut the connection, or None for none."""


def none(method: str, path: str) -> None:
    """All is well."""


class GoogleEmulator:
    """`with GoogleEmulator() as emulator:` serves gs://bucket; `emulator.trouble` may be set at any time."""

    def __init__(self, port: int = 0):
        self.trouble: Trouble = none
        self.requests = 0
        self._storage = _Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self._storage)
        emulator, lock = self, threading.RLock()

        class Handler(server.RequestHandler):
            def __init__(self, *args: Any):
                with contextlib.suppress(OSError):  # who asked has gone
                    super().__init__(emulator._storage, *args)

            def _handle(self, method: str) -> None:
                emulator.requests += 1
                if (status := emulator.trouble(method, self.path)) is not None:
                    if status:
                        self.send_error(status)
                    else:
                        with contextlib.suppress(OSError):
                            self.connection.shutdown(socket.SHUT_RDWR)
                    return
                length = int(self.headers.get("Content-Length") or 0)
                if length:
                    self.rfile = _Read(self.rfile.read(length))  # before others wait for this one
                with lock:
                    if not self._as_expected():
                        self.send_error(412)
                    else:
                        self._name_the_last_bytes()
                        query = parse_qs(urlparse(self.path).query)
                        emulator._storage.between = [query.get(f"{edge}Offset", [""])[0] for edge in ("start", "end")]
                        getattr(super(), f"do_{method}")()

            def _as_expected(self) -> bool:
                """Whether the object has the generation that the request names."""
                url = urlparse(self.path)
                query = parse_qs(url.query)
                if not (expected := query.get("ifGenerationMatch")):
                    return True
                name = query.get("name", [unquote(url.path.rpartition("/o/")[2])])[0]
                return expected[0] == emulator.generation(unquote(url.path.split("/b/")[1].split("/")[0]), name)

            def _name_the_last_bytes(self) -> None:
                """Ask for so many of the last bytes of an object, as ArrayRecord does, by where they begin."""
                if (asked := self.headers.get("Range", "")).startswith("bytes=-"):
                    bucket, _, name = urlparse(self.path).path.partition("/b/")[2].partition("/o/")
                    size = emulator.size(unquote(bucket), unquote(name))
                    self.headers.replace_header("Range", f"bytes={max(size - int(asked[7:]), 0)}-{size - 1}")

            def end_headers(self) -> None:
                url = urlparse(self.path)
                if "/o/" in url.path:  # TensorStore knows objects by it
                    bucket, _, name = url.path.partition("/b/")[2].partition("/o/")
                    self.send_header("x-goog-generation", emulator.generation(unquote(bucket), unquote(name)))
                super().end_headers()

            do_GET = lambda self: self._handle("GET")  # noqa: E731
            do_POST = lambda self: self._handle("POST")  # noqa: E731
            do_PUT = lambda self: self._handle("PUT")  # noqa: E731
            do_DELETE = lambda self: self._handle("DELETE")  # noqa: E731
            do_PATCH = lambda self: self._handle("PATCH")  # noqa: E731

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def generation(self, bucket: str, name: str) -> str:
        """Of an object; "0" if there is none."""
        try:
            return self._storage.get_file_obj(bucket, name)["generation"]
        except exceptions.NotFound:
            return "0"

    def size(self, bucket: str, name: str) -> int:
        """Bytes of an object; 0 if there is none."""
        with contextlib.suppress(exceptions.NotFound):
            return int(self._storage.get_file_obj(bucket, name)["size"])
        return 0

    @property
    def environment(self) -> dict[str, str]:
        """By which every library finds it."""
        names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
        return dict.fromkeys(names, self.url)

    def serve(self) -> None:
        """Until the end of the process."""
        self._server.serve_forever(0.05)

    def __enter__(self) -> "GoogleEmulator":
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Storage(storage.Storage):
    """Lists the names of a range, as TensorStore asks for them."""

    between = "", ""
    """The first, and the first behind the last; empty for any."""

    def get_file_list(self, *args: Any, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
        files, prefixes = super().get_file_list(*args, **options)
        start, end = self.between
        return [file for file in files if start <= file["name"] and (not end or file["name"] < end)], prefixes


class _Read:
    """The body of a request that was read."""

    def __init__(self, content: bytes):
        self._content = content

    def read(self, size: int = -1) -> bytes:
        content = self._content if size < 0 else self._content[:size]
        self._content = self._content[len(content) :]
        return content

    def readline(self, *_: int) -> bytes:
        return b""

    def close(self) -> None: ...

    closed = False

    def flush(self) -> None: ...


class AmazonEmulator:
    """The same for s3://bucket."""

    def __init__(self, port: int = 0):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self.trouble: Trouble = none
        moto = DomainDispatcherApplication(create_backend_app)

        def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if (status := self.trouble(environment["REQUEST_METHOD"], environment["PATH_INFO"])) is None:
                return moto(environment, start_response)
            if not status:
                with contextlib.suppress(OSError):
                    environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response(f"{status or 500} Trouble", [("Content-Length", "0")])
            return []

        self._server = make_server("127.0.0.1", port, answer, threaded=True, request_handler=MotoRequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """By which every library finds it."""
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", **keys}

    def __enter__(self) -> "AmazonEmulator":
        import boto3

        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


@contextlib.contextmanager
def of(scheme: str) -> Iterator[GoogleEmulator | AmazonEmulator]:
    """The emulator of gs or s3, and the environment that leads there."""
    emulator, before = _started(scheme), dict(os.environ)
    os.environ.update(emulator.environment)
    try:
        yield emulator
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _started(scheme: str) -> GoogleEmulator | AmazonEmulator:
    """One for all tests of this process, as libraries remember where theirs is."""
    return (GoogleEmulator() if scheme == "gs" else AmazonEmulator()).__enter__()


if __name__ == "__main__":
    GoogleEmulator(int(sys.argv[1])).serve()
