"""The requests that docs/serve.md shows, sent by curl as they stand there."""

import json
import shutil
import subprocess

import pytest
from pages import ROOT, commands
from serving import Server


@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_requests_of_the_page_are_answered(model_folder, tmp_path):
    server = Server(model_folder)
    try:
        for command in commands(ROOT / "docs/serve.md", tmp_path):
            if command.words[0] == "curl":
                words = [word.replace("localhost:8000", f"127.0.0.1:{server.port}") for word in command.words]
                done = subprocess.run([*words, "--silent", "--show-error", "--fail"], capture_output=True, text=True)
                assert done.returncode == 0, (command, done.stderr)
                assert command.words[1].endswith("health") or "error" not in json.loads(done.stdout), command
    finally:
        server.process.kill()
