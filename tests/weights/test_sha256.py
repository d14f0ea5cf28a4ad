"""One sum of several files: that of the list that `sha256sum` prints of them, each of them read once."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chosen import long_after

from a3jax.files.places import cache, place
from a3jax.weights import sha256


def expected(contents: dict[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[str]:
    """The names of the files that were read since it was last emptied."""
    names, real = [], sha256._sum

    def seen(path: Path, advance: Callable[[int], None]) -> str:
        names.append(path.name)
        return real(path, advance)

    monkeypatch.setattr(sha256, "_sum", seen)
    monkeypatch.setattr(sha256, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


@pytest.mark.parametrize("where", long_after(1, ["here", "gs"]))
def test_a_file_is_read_again_only_where_it_may_have_changed(where, read, tmp_path):
    with contextlib.ExitStack() as stack:
        folder = tmp_path / "model"
        if where == "gs":
            stack.enter_context(pytest.importorskip("emulators").of("gs"))
            folder = place("gs://bucket/sums")
        folder.mkdir()
        contents = {"a": b"one", "b": b"two"}
        files = {name: folder / name for name in contents}

        def write(name: str, content: bytes) -> None:
            contents[name] = content
            files[name].write_bytes(content)

        def sums_with(*names: str) -> None:
            read.clear()
            assert sha256.of_all(files) == expected(contents)
            assert sorted(read) == sorted(names)

        for name, content in list(contents.items()):
            write(name, content)
        sums_with("a", "b")
        sums_with()
        write("b", b"six")
        sums_with("b")
        sums_with()
        if where == "here":
            before = files["a"].stat()
            write("a", b"eno")
            os.utime(files["a"], ns=(before.st_atime_ns, before.st_mtime_ns))
            sums_with("a")
            other = folder / "other"
            other.write_bytes(b"neo")
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.replace(files["a"])
            contents["a"] = b"neo"
            sums_with("a")
        (kept,) = cache("sums").iterdir()
        for damaged in (b"", b"[]", kept.read_bytes()[:-9], b'{"a": 1, "b": ["x", "y"]}'):
            kept.write_bytes(damaged)
            sums_with("a", "b")
        files["a"].unlink()
        with pytest.raises(FileNotFoundError):
            sha256.of_all(files)


def test_what_has_just_changed_or_changes_while_it_is_read_is_read_again(read, tmp_path, monkeypatch):
    files = {"a": tmp_path / "a"}
    files["a"].write_bytes(b"one")
    monkeypatch.setattr(sha256, "SETTLED_SECONDS", 60.0)
    for _ in range(2):
        sha256.of_all(files)
    assert read == ["a", "a"]
    monkeypatch.setattr(sha256, "SETTLED_SECONDS", -1.0)
    real = sha256._sum
    monkeypatch.setattr(sha256, "_sum", lambda *args: (real(*args), files["a"].write_bytes(b"two"))[0])
    assert sha256.of_all(files) == expected({"a": b"one"})
    assert sha256.of_all(files) == expected({"a": b"two"})


def test_a_cache_that_cannot_be_written_costs_time_alone(read, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert sha256.of_all({"file": tmp_path / "file"}) == expected({"file": b"one"})
    assert len(read) == 2
