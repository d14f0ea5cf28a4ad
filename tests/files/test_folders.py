"""What is somebody else's stays as it is: folders and files that are in the way, links, and what came there meanwhile."""

import os
from pathlib import Path

import pytest
from typed import fails

from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.files.folders import complete_or_nothing, new_file, resumable


def theirs(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")


def linked(folder: Path) -> None:
    theirs(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def linked_to_ours(folder: Path) -> None:
    begun(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def marked_by_another_program(folder: Path) -> None:
    theirs(folder)
    (folder / ".made_from").write_text("{}")


def mark_that_is_a_link(folder: Path) -> None:
    theirs(folder)
    (folder / ".made_from").symlink_to("thesis.txt")


def mark_of_bytes(folder: Path) -> None:
    theirs(folder)
    (folder / ".made_from").write_bytes(b"\xff\xfe")


def file(folder: Path) -> None:
    folder.write_text("years of work")


def dangling(folder: Path) -> None:
    folder.symlink_to("nowhere")


def begun(folder: Path, **made_from: str) -> None:
    """As a command that was stopped leaves it."""
    out = folder.with_name("stopped")

    def begin() -> None:
        with resumable(out, made_from) as partial:
            (partial / "part").write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    out.with_name("stopped.partial").rename(folder)


def everything(folder: Path) -> dict[str, bytes | str]:
    """All that lies in a folder, to the last bit."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "in_the_way",
    [theirs, linked, linked_to_ours, marked_by_another_program, mark_that_is_a_link, mark_of_bytes, file, dangling],
)
def test_a_partial_folder_of_somebody_else_stays_as_it_is(in_the_way, tmp_path):
    in_the_way(tmp_path / "out.partial")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"out\.partial (is in the way|cannot be made)"), resumable(tmp_path / "out", {}):
        pytest.fail("nothing is to be begun")
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("in_the_way", [theirs, linked])
def test_no_command_empties_a_folder_of_somebody_else(in_the_way, model_folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    in_the_way(tmp_path / "out.partial")
    before = everything(tmp_path)
    line = fails(capsys, "prepare", tmp_path / "text.txt", tmp_path / "out", "--tokenizer", "bytes", "--held-out", "0")
    assert f"{tmp_path / 'out.partial'} is in the way" in line
    assert f"{tmp_path / 'out.partial'} is in the way" in fails(capsys, "export", model_folder, tmp_path / "out")
    assert everything(tmp_path) == before


def test_a_partial_folder_of_ours_is_gone_on_with_or_begun_anew(tmp_path):
    begun(tmp_path / "out.partial", source="a")
    with resumable(tmp_path / "out", {"source": "a"}) as partial:
        assert (partial / "part").read_text() == "half of it"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]

    theirs(tmp_path / "theirs")
    begun(tmp_path / "next.partial", source="a")
    (tmp_path / "next.partial" / "link").symlink_to(tmp_path / "theirs")
    with resumable(tmp_path / "next", {"source": "b"}) as partial:
        assert [path.name for path in partial.iterdir()] == [".made_from"]
    assert not list((tmp_path / "next").iterdir())
    assert (tmp_path / "theirs" / "thesis.txt").is_file(), "a link is removed, not what it leads to"


@pytest.mark.parametrize("left", [(), (".made_from",)])
def test_a_command_killed_while_it_began_is_gone_on_with(left, tmp_path):
    (tmp_path / "out.partial").mkdir()
    for name in left:
        (tmp_path / "out.partial" / name).touch()
    with resumable(tmp_path / "out", {}):
        pass
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("make", [lambda out: resumable(out, {}), complete_or_nothing, new_file])
@pytest.mark.parametrize("comes", [file, dangling])
def test_what_comes_there_meanwhile_is_not_replaced(make, comes, tmp_path):
    def write() -> None:
        with make(tmp_path / "out") as partial:
            if partial.is_dir():
                (partial / "work").touch()
            comes(tmp_path / "out")

    with pytest.raises(UserError, match="out exists already"):
        write()
    comes(tmp_path / "expected")
    here, expected = (everything(tmp_path)[name] for name in ("out", "expected"))
    assert here == expected
    if make not in (complete_or_nothing, new_file):
        assert (tmp_path / "out.partial" / "work").is_file(), "hours of work"


def test_a_link_to_nothing_is_somebodys(tmp_path):
    dangling(tmp_path / "out")
    for make in (complete_or_nothing, new_file):
        with pytest.raises(UserError, match="out exists already"), make(tmp_path / "out"):
            pytest.fail("nothing is to be begun")
    with pytest.raises(UserError, match="out exists already"):
        prepare([tmp_path], tmp_path / "out", Preparation("bytes"))


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "LONG"),
        ("train", "LONG"),
        ("generate", "LONG", "--text", "[[1]]"),
        ("import", "LONG", "out"),
        ("import", "nowhere", "LONG"),
        ("prepare", "TEXT", "LONG", "--tokenizer", "bytes"),
        ("prepare", "TEXT", "LONG/out", "--tokenizer", "bytes"),
        ("prepare", "TEXT", "out", "--tokenizer", "LONG"),
        ("export", "MODEL", "LONG"),
        ("export", "MODEL", "LONG", "--as", "gguf"),
        ("sweep", "status", "LONG"),
        ("inspect", "CIRCLE"),
    ],
)
def test_a_path_that_cannot_be_is_one_line(words, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    (tmp_path / "circle").symlink_to("circle")
    paths = {"LONG": "x" * 300, "TEXT": "text.txt", "MODEL": str(model_folder), "CIRCLE": "circle"}
    for word, path in paths.items():
        words = [given.replace(word, path) for given in words]
    fails(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "text.txt"]
