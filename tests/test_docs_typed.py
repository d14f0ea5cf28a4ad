"""What the pages tell to type is typed: every command, request and block of Python of a page, in order, in a small world.

The world (`tests/small_world.py`) has under the names of the pages what a reader would have. Each page begins in a copy of
it. What a page makes takes the place of what the world has under the same name.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, Block, Command, blocks, commands
from serve.serving import Server
from small_world import make_world
from typed import piped, run

from a3jax.cli import COMMANDS

pytestmark = pytest.mark.long

TRAINING = {"--train.eval-windows": "2", "--train.compute-dtype": "float32"}
WINDOWS = {"--data.length": "64", "--data.batch": "2"}
ADDED = {
    "prepare": {"--held-out": "0.2"},
    "train": {"--train.stop-at": "2"} | TRAINING | WINDOWS,
    "sweep run": {"--index": "0"} | TRAINING | WINDOWS,
    "data bench": {"--steps": "3"},
    "evaluate": {"--limit": "2", "--batch": "2", "--longest": "256"},
}
"""Options that take the place of what a page says, or are added to it: small numbers."""
OF_TASKS = {
    "likelihood": ("--orders", "ar", "random_4"),
    "stories": ("--settings", "one"),
    "humaneval_infill": ("--infilling", "length", "space"),
}
"""Options that are added where an evaluation has these tasks and says nothing of them."""
REPLACED = {
    **{"--tokens": "4", "--new-tokens": "4", "--prompt-tokens": "8", "--sizes": "2-3"},
    **{"--token": "0", "--data.overlap": "16"},
    **WINDOWS,
}
"""Options that take the place of what a page says."""
PUT = {r"^/shared/|^gs://BUCKET/": "", r"^gs://bucket/": "bucket/"}
"""What is put in place of words."""
ON_PAGES = {
    ("blanks.md", "runs/mine"): "runs/open",  # "trained on such blanks"
    ("duel.md", "0"): "src",  # what a script prints
    ("study.md", "0"): "src",
    ("ideas.md", "0"): "src",
    ("ideas.md", "sweeps/two_sided/runs/*"): "sweeps/two_sided/runs/seeding=successor",
}
"""The same, of words of one page."""
NOT_TYPED = {
    r"a3jax plan|--train\.executables": "needs the compiler of TPUs (tests/plan)",
    r"--mesh\.": "needs several devices (tests/devices)",
}
"""Commands of a3jax that are left out, each with the reason."""
SCRIPTS = ("experiments/smollm2_instruct.py", "-c")
"""What is started of Python."""
NOT_STARTED = {
    r"make|pip|pytest": "sets up environments, downloads, or runs these tests",
    r"envsubst|env|gcloud|kubectl|launch/.*|sbatch|seq|sky|xpk": "wants a cluster; what it hands to a3jax is typed",
    r"openssl": "makes a key, which the tests have",
    r"python (benchmarks|experiments)/.*": "measures or trains for minutes and more",
}
"""Other commands that are left out."""
NOT_RUN = {"lm_eval": "asks for data that only the hub has (tests/evaluate/test_harness.py)"}
"""Blocks of Python that are compiled and not run, by what they import, each with the reason."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """What each page begins with."""
    here = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        make_world()
    return here


def small(words: list[str], page: str = "") -> list[str]:
    """The words of a command with what the tables put in their place."""
    words = [ON_PAGES.get((page, word), word) for word in words]
    words = [next((re.sub(old, new, word) for old, new in PUT.items() if re.search(old, word)), word) for word in words]
    added = next((options for name, options in ADDED.items() if words[: len(name.split())] == name.split()), {})
    for option, value in (REPLACED | added).items():
        if option in words or option in added:
            at = words.index(option) if option in words else len(words)
            words[at : at + 2] = option, value
    for task, (option, *values) in OF_TASKS.items():
        if words[0] == "evaluate" and task in words and option not in words:
            words += [option, *values]
    return words


def makes(words: list[str]) -> str | None:
    """The folder or file that a command writes, where the page says which."""
    given = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    if words[0] == "train":
        return str(COMMANDS["train"][0].parse(words[1:], "a3jax train").config.run_folder)
    if words[0] in ("prepare", "import", "export"):
        return given[-1]
    out = words[words.index("--out") + 1] if words[0] == "evaluate" and "--out" in words else None
    return None if out in given else out


def started(words: list[str]) -> str:
    """What a command says in a process of its own."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


class Reader:
    """Types what a page says, in its own copy of the world, and notes what went wrong."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch):
        self.page = page
        self.monkeypatch, self.made, self.typed, self.server = monkeypatch, {}, set(), None

    def types(self, command: Command) -> None:
        """A command of ours, a request to the service that was started last, or a script."""
        if command.words[0] == "curl":
            self.asks(list(command.words))
        elif command.words[0] == "python" and command.words[1] in SCRIPTS:
            started([sys.executable, *command.words[1:]])
        elif command.words[0] != "a3jax":
            begin = " ".join(command.words[:2]) if command.words[0] == "python" else command.words[0]
            assert any(re.fullmatch(left_out, begin) for left_out in NOT_STARTED), f"{begin} is neither started nor left out"
        for ours in command.ours():
            handed_on = ours.words != command.words and ours in self.typed  # to every program of a block
            if handed_on or any(re.search(left_out, str(ours)) for left_out in NOT_TYPED):
                continue
            self.typed.add(ours)
            words = small(list(ours.words[1:]), self.page.name)
            if words[0] == "serve":
                self.serves(words[1:])
                continue
            if (out := makes(words)) is not None and self.made.get(out) != ours.line:
                shutil.rmtree(out, ignore_errors=True)  # of the world, or of another example
                self.made[out] = ours.line
            if "--index" in words:  # one of an array of jobs, which it becomes
                started([sys.executable, "-m", "a3jax.cli", *words])
                continue
            piped(self.monkeypatch, Path(ours.stdin).read_bytes() if ours.stdin else b"")
            run(*words)

    def serves(self, words: list[str]) -> None:
        """Start a service, in place of the one before."""
        self.leaves()
        key = {"A3JAX_API_KEY": "0123456789abcdef"} if "--host" in words else {}
        self.server = Server(*words, environment=os.environ | key)

    def leaves(self) -> None:
        """End the service."""
        if self.server is not None:
            self.server.__exit__()

    def asks(self, words: list[str]) -> None:
        words = [word.replace("localhost:8000", f"127.0.0.1:{self.server.port}") for word in words]
        answer = started([*words, "--silent", "--show-error", "--fail"])
        assert words[1].endswith("health") or "error" not in json.loads(answer)

    def runs(self, block: Block) -> None:
        """A block of Python, and what it defines of an experiment."""
        if any(re.search(rf"^import {name}", block.text, re.MULTILINE) for name in NOT_RUN):
            return
        names = {"__name__": "page"}
        exec(compile("\n" * (block.line - 1) + block.text, self.page.name, "exec"), names)
        for name in ("experiment", "sweep"):
            if name in names:
                names[name]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_is_done(page, world, tmp_path, monkeypatch, capfd):
    here = tmp_path / "here"
    shutil.copytree(world, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # in what a sweep starts
    monkeypatch.setenv("HOME", str(here / "home"))
    told = [*commands(page, here), *(block for block in blocks(page) if block.kind == "python")]
    reader, wrong = Reader(page, monkeypatch), []
    try:
        for one in sorted(told, key=lambda one: one.line):
            capfd.readouterr()
            try:
                reader.types(one) if isinstance(one, Command) else reader.runs(one)
            except (Exception, SystemExit) as error:
                wrong.append(f"{one}\n{capfd.readouterr().err[-1000:]}\n{type(error).__name__}: {error}")
    finally:
        reader.leaves()
    assert not wrong, "\n\n".join(wrong)
