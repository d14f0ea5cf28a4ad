"""Models by name, through the hub's own client and a small hub of our own on this machine."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays

from a3jax.checkpoint.folder import find
from a3jax.weights import hub

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A hub with the one model owner/model, whose files are those of `folder`. Yields its address."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/model/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in folder.iterdir()
                ]
                self._send(json.dumps(files).encode())
            elif path.startswith("/api/models/owner/model/revision/"):
                self._send(json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith("/owner/model/resolve/"):
                content = (folder / path.rsplit("/", 1)[1]).read_bytes()
                self._send(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
            elif path.startswith("/api/models/owner/gated/"):
                self._send(b"", {"X-Error-Code": "GatedRepo"}, 403)
            else:
                self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

        def _send(self, content, headers=None, status=200):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _import(name: str, out: Path, cache: Path, address: str, offline: str = "0") -> subprocess.CompletedProcess:
    own = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "a3jax.cli", "import", name, str(out), "--json"]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True)


@pytest.mark.long
def test_a_hub_model_is_downloaded_checked_and_found_again_without_a_network(pretrained, imported, tmp_path):
    cache = tmp_path / "cache"
    with serve(pretrained("llama")) as address:
        done = _import("owner/model@main", tmp_path / "out", cache, address)
        assert done.returncode == 0, done.stderr
        for name, message in [
            ("owner/absent", "owner/absent is neither a file or folder here nor a model of the Hugging Face hub"),
            ("owner/gated", "owner/gated asks for consent: accept it at https://huggingface.co/owner/gated"),
        ]:
            refused = _import(name, tmp_path / "other", cache, address)
            assert refused.returncode == 2
            assert message in refused.stderr
    expected = load_arrays(imported("llama"))
    jax.tree.map(np.testing.assert_array_equal, load_arrays(find(tmp_path / "out")), expected)
    assert find(tmp_path / "out").record.source == "owner/model@main"

    again = _import("owner/model", tmp_path / "again", cache, address, offline="1")
    assert again.returncode == 0, again.stderr
    absent = _import("owner/absent", tmp_path / "other", cache, address, offline="1")
    assert absent.returncode == 2
    assert "the Hugging Face hub cannot be reached" in absent.stderr
    assert absent.stderr.count("\n") == 1

    (weights,) = [file for file in (cache / "hub").rglob("blobs/*") if file.stat().st_size > 50_000]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert list((cache / "hub").rglob("snapshots/*/generation_config.json"))
    damaged = _import("owner/model", tmp_path / "other", cache, address, offline="1")
    assert damaged.returncode == 2
    assert "model.safetensors is damaged: its SHA-256" in damaged.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/model", ("owner/model", None)),
        ("Qwen/Qwen2.5-0.5B@main", ("Qwen/Qwen2.5-0.5B", "main")),
        ("owner/model@refs/pr/1", ("owner/model", "refs/pr/1")),
        *[(name, None) for name in ("model", "../model", "/owner/model", "a/b/c", "owner/", "~/model", "owner/mo del", "")],
    ],
)
def test_which_names_can_be_of_the_hub(name, expected):
    assert hub.parse(name) == expected
