"""What reaches a terminal: names, texts and records never rule it, whoever wrote them."""

import ast
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest

from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.outside_text import one_line, printable
from a3jax.progress import Progress
from a3jax.terminal import Terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066[red]b[/red]\r"
OURS = re.compile(r"\x1b\[[0-9;]*[mK]|\x1b\[\?25[lh]|\x1b\[1?[AG]|\r\n|\r(?=\x1b\[(?:2K|1A))")
"""What rich writes for colours, and for bars that it draws again."""


def on_terminal(*words: object) -> str:
    """All that a command writes, standard output and standard error being one terminal."""
    master, slave = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                block = os.read(master, 65536)
            except OSError:  # the other end is closed
                return
            if not block:
                return
            shown.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    command = [sys.executable, "-m", "a3jax.cli", *map(str, words)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment, timeout=300)
    os.close(slave)
    reader.join(10)
    os.close(master)
    return b"".join(shown).decode()


def rules(letter: str) -> bool:
    """Whether a terminal obeys it, or turns the direction of writing by it."""
    turns = unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return turns or letter in "\u061c\u200e\u200f" or unicodedata.category(letter) in ("Cc", "Zl", "Zp")


def is_tame(shown: str) -> bool:
    """Whether nothing is in it but text, and what a3jax itself has a terminal do."""
    return not any(map(rules, OURS.sub("", shown).replace("\n", "").replace("\t", "")))


def test_every_character_that_rules_is_spelled():
    for code in range(0x110000):
        letter = chr(code)
        assert (one_line(letter) != letter) == rules(letter)
        assert (printable(letter) != letter) == (rules(letter) and letter not in "\n\t")
        assert not rules(one_line(letter))
    assert one_line("a\n\tb") == "a␊␉b"
    assert not is_tame(EVIL)
    assert is_tame(printable(EVIL))


@pytest.fixture
def corpus(tmp_path) -> Path:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{EVIL} {i}"}) + "\n" for i in range(20)))
    (tmp_path / "bad.jsonl").write_text(json.dumps({f"field {EVIL}": 1}) + "\n")
    prepare([tmp_path / "texts.jsonl"], tmp_path / "corpus", Preparation("bytes", workers=1))
    manifest = tmp_path / "corpus" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "sources": [EVIL]}))
    return tmp_path / "corpus"


@pytest.fixture
def experiment(tmp_path) -> Path:
    path = tmp_path / "x.py"
    path.write_text(
        "from a3jax.config import *\n"
        "def experiment():\n"
        "    shape = ModelConfig('llama', 258, 8, 8, 1, 1, 1, 8, 64, start_token=256, end_tokens=(257,))\n"
        f"    data = DataConfig({str(path.parent / 'corpus')!r}, length=32, batch=2)\n"
        "    return Config('x', model=shape, data=data, curriculum=(Stage(2, 'random', 2),))\n"
    )
    return path


@pytest.mark.long
def test_names_and_records(corpus, experiment, tmp_path):
    said = on_terminal("import", f"no{EVIL}", "out")
    assert is_tame(said)
    assert "no␛]0;owned␇␛[2J\ufffd31m\ufffd\ufffd[red]b[/red]␍ does not exist" in said
    said = on_terminal("prepare", tmp_path / "bad.jsonl", tmp_path / "out", "--tokenizer", "bytes")
    assert is_tame(said)
    assert "it has field ␛]0;owned" in said
    said = on_terminal("inspect", corpus)
    assert is_tame(said)
    assert "[red]b[/red]" in said, "rich's markup is text"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": EVIL}))
    assert is_tame(on_terminal("inspect", tmp_path / "folder"))
    named = tmp_path / f"x{EVIL.replace('/', '')}.py"
    named.write_text("raise ValueError('\\x1b[2J')")
    assert is_tame(on_terminal("train", named))
    named.write_text(experiment.read_text().replace("Config('x'", f"Config({EVIL!r}"))
    assert is_tame(on_terminal("train", named, "--help"))


@pytest.mark.long
def test_texts(corpus, experiment, model_folder, tmp_path):
    for words in (["data", "show", experiment], ["curriculum", experiment]):
        said = on_terminal(*words)
        assert "[given]" in said
        assert is_tame(said)
    assert "␛" in on_terminal("data", "show", experiment)
    said = on_terminal("generate", model_folder, "--text", f"{EVIL}[[3]]", "--watch")
    assert is_tame(said)
    assert "␛" in said
    assert is_tame(on_terminal("score", model_folder, "--text", EVIL))
    (tmp_path / EVIL.replace("/", "")).write_text("some text\n" * 9)
    words = ["evaluate", model_folder, "--tasks", "likelihood", "--orders", "ar", "--text", tmp_path / EVIL.replace("/", "")]
    said = on_terminal(*words)
    assert "source" in said
    assert is_tame(said)


@pytest.mark.long
def test_data_comes_byte_for_byte_where_nobody_looks(model_folder):
    command = [sys.executable, "-m", "a3jax.cli", "generate", str(model_folder), "--text", f"{EVIL}[[1]]"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    assert EVIL.encode() in done.stdout


def test_a_bar_takes_what_it_is_told_as_text(monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file:
        monkeypatch.setattr("a3jax.progress.console", Terminal(file=file, force_terminal=True, width=200))
        with Progress(f"[bold]{EVIL}", 3, "texts") as bar:
            bar.note(f"[red]note[/red] {EVIL}")
    read = b""
    with contextlib.suppress(OSError):  # the end, once the other side is closed
        while part := os.read(master, 65536):  # as much as one write gave, be it the first of several
            read += part
    os.close(master)
    shown = read.decode()
    assert is_tame(shown)
    assert "[red]note[/red]" in shown


def test_nothing_else_has_a_console():
    package = Path(__file__).parents[1] / "a3jax"
    for path in package.rglob("*.py"):
        if path.name != "terminal.py":
            imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not [node for node in imported if node.module == "rich.console"], f"{path}: take a3jax.terminal"
