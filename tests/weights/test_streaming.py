"""Weights pass through tensor by tensor: killed work goes on where it stood, damage is found, memory stays small."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from model_folders import load_arrays
from safetensors.numpy import load_file

from a3jax.checkpoint.folder import find
from a3jax.errors import UserError
from a3jax.export import exporter
from a3jax.export.exporter import export_model
from a3jax.files.folders import resumable
from a3jax.weights.huggingface import HuggingFaceFolder
from a3jax.weights.importer import import_model
from a3jax.weights.sha256 import SUMS
from a3jax.weights.source import open_source

DIES = """
import os, signal, sys
from pathlib import Path
from a3jax.checkpoint.folder import find
from a3jax.export import exporter
from a3jax.weights import importer
from a3jax.weights.source import open_source

left, how = int(sys.argv[3]), int(sys.argv[4])

def counted(function):
    def call(*args):
        global left
        if left == 0:
            os.kill(os.getpid(), how)
        left -= 1
        return function(*args)
    return call

if sys.argv[1] == "import":
    importer._write = counted(importer._write)
    importer.import_model(open_source(sys.argv[2]), Path("out"))
else:
    exporter.write_safetensors = counted(exporter.write_safetensors)
    exporter.export_model(find(Path(sys.argv[2])), Path("out"), shard_bytes=40_000)
"""


def _dies(what: str, source: Path, left: int, cwd: Path, how: int = signal.SIGKILL) -> subprocess.CompletedProcess:
    """Run an import or export in a process that gets the signal after `left` tensors or files."""
    command = [sys.executable, "-c", DIES, what, str(source), str(left), str(int(how))]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("left", [0, 1, 9])
def test_a_killed_import_goes_on_where_it_stood(left, pretrained, imported, tmp_path, monkeypatch):
    assert _dies("import", pretrained("llama"), left, tmp_path).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    read, once = [], HuggingFaceFolder.read
    monkeypatch.setattr(HuggingFaceFolder, "read", lambda self, name: read.append(name) or once(self, name))
    source = open_source(pretrained("llama"))
    import_model(source, tmp_path / "out")
    assert len(read) == len(source.shapes()) - left
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(imported("llama").folder))
    jax.tree.map(np.testing.assert_array_equal, load_arrays(find(tmp_path / "out")), load_arrays(imported("llama")))


@pytest.mark.long
@pytest.mark.parametrize("left", [0, 2])
def test_a_killed_export_goes_on_with_the_first_file_that_is_not_whole(left, imported, tmp_path, monkeypatch):
    assert _dies("export", imported("llama").folder, left, tmp_path).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    written, write = [], exporter.write_safetensors
    monkeypatch.setattr(exporter, "write_safetensors", lambda path, *rest: written.append(path) or write(path, *rest))
    export_model(imported("llama"), tmp_path / "out", shard_bytes=40_000)
    export_model(imported("llama"), tmp_path / "whole", shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 3
    assert len(written) == 2 * len(shards) - left
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    for name in files:
        if name != "README.md":  # it names the folder
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.long
def test_what_was_begun_from_other_weights_is_begun_anew(pretrained, imported, tmp_path):
    assert _dies("import", pretrained("qwen3"), 9, tmp_path).returncode == -signal.SIGKILL
    import_model(open_source(pretrained("llama")), tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, load_arrays(find(tmp_path / "out")), load_arrays(imported("llama")))


def _stopped(out: Path, error: type[BaseException]) -> None:
    with resumable(out, {"a": 1}) as folder:
        (folder / "file").write_text("done")
        raise error


def test_an_interrupt_keeps_what_is_done_and_says_so(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        _stopped(tmp_path / "out", KeyboardInterrupt)
    assert "the same command goes on from" in capsys.readouterr().err
    with resumable(tmp_path / "out", {"a": 1}) as folder:
        assert (folder / "file").read_text() == "done"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["file"]


@pytest.mark.parametrize("error", [UserError, ZeroDivisionError])
def test_any_other_error_leaves_nothing(error, tmp_path):
    with pytest.raises(error):
        _stopped(tmp_path / "out", error)
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_folder(tmp_path):
    second = resumable(tmp_path / "out", {})
    with resumable(tmp_path / "out", {}), pytest.raises(UserError, match="being written by another process"):
        second.__enter__()
    assert (tmp_path / "out").is_dir()


def test_checksums_are_those_of_sha256sum_and_are_checked_on_import(imported, tmp_path):
    export_model(imported("llama"), tmp_path / "out", shard_bytes=40_000)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "out", check=True, capture_output=True)
    damaged = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=rf"{damaged.name} is damaged: its SHA-256 is not the one expected"):
        import_model(open_source(tmp_path / "out"), tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_flipped_bit_in_a_model_folder_is_found_by_any_read(imported, tmp_path):
    folder = Path(shutil.copytree(imported("llama").folder, tmp_path / "model"))
    chunk = max((folder / "params" / "blocks.gate").rglob("*/0"), key=lambda path: path.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UserError, match="params is damaged"):
        export_model(find(folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


MEASURE = """
import sys
from pathlib import Path
from a3jax.checkpoint.folder import find
from a3jax.export import exporter
from a3jax.weights import importer
from a3jax.weights.source import open_source
from memory import grown_by

small = Path(sys.argv[2])  # once to load what is loaded once
importer.import_model(open_source(small), Path("small"))
exporter.export_model(find(Path("small")), Path("small-out"))
print(grown_by(lambda: importer.import_model(open_source(sys.argv[1]), Path("model")))[1])
print(grown_by(lambda: exporter.export_model(find(Path("model")), Path("out")))[1])
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc, which is not here")
def test_memory_is_that_of_a_few_tensors_not_of_the_model(large, pretrained, tmp_path):
    total = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(large), str(pretrained("llama"))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for grown in map(int, ran.stdout.split()):
        assert grown < total / 4
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(large / "model-3.safetensors").items():
        np.testing.assert_array_equal(written[name], tensor)
