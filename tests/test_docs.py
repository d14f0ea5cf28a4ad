"""What the pages name is there, and what they tell to type is understood."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, Command, blocks, commands

from a3jax.cli import COMMANDS
from a3jax.commands import plan
from a3jax.commands.commandline import parse

NAMED = re.compile(r"`((?:a3jax|adapters|benchmarks|experiments|launch|tests)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
MINE = """
from a3jax.config import Config, DataConfig, Stage
from a3jax.curriculum import Plateau
from a3jax.sweep import seeds

def experiment():
    stages = Stage(2, "in_order", 4), Stage(2, "random", 4), Stage(2, "random", 4, plateau=Plateau())
    return Config("mine", source="models/llama", data=DataConfig("data/mine", length=2048, batch=64), curriculum=stages)

def sweep():
    return seeds(2)
"""
"""What the pages call an experiment of the reader's own."""


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to, as GitHub makes them."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(page.read_text()))
    return {f"#{title.replace(' ', '-')}" for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_headings_that_are_named_are_there(page):
    text = page.read_text()
    absent = [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    for name, heading in LINK.findall(text):
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in anchors(target)):
            absent.append(name + heading)
    assert not absent


def test_rooms_stand_in_the_readme_behind_all_that_they_need():
    told = re.findall(r"^\| ((?:`\w+/` ?)+)\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    order = re.findall(r"`(\w+)/`", " ".join(told))
    assert sorted(order) == sorted(path.parent.name for path in ROOT.glob("a3jax/*/__init__.py"))
    for room in order:
        sources = "".join(path.read_text() for path in (ROOT / "a3jax" / room).rglob("*.py"))
        needed = {*re.findall(r"^ *(?:from|import) a3jax\.(\w+)", sources, re.MULTILINE)} & {*order}
        assert needed <= {*order[: order.index(room) + 1]}, room


def test_the_site_leads_to_every_page():
    tagged = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())  # of Python, which no safe reader takes
    nav = yaml.safe_load(tagged)["nav"]
    pages = [page for part in nav for page in ([part] if isinstance(part, str) else next(iter(part.values())))]
    made = {"index.md", "reference.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert sorted(pages) == sorted({page.name for page in ROOT.glob("docs/*.md")} | made)


@pytest.mark.long
def test_the_site_is_built_without_a_broken_link(tmp_path):
    mkdocs = ROOT / ".venv-docs/bin/mkdocs"
    if not mkdocs.is_file():
        pytest.skip("make docs sets up the environment of the site, in .venv-docs")
    subprocess.run([mkdocs, "build", "--strict", "--quiet", "--site-dir", tmp_path], cwd=ROOT, check=True)
    assert "a3jax.infill" in (tmp_path / "reference.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader types: a clone's experiments, and some of the reader's own."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "experiments").mkdir()
    for file in ROOT.glob("experiments/*.py"):
        (folder / "experiments" / file.name).symlink_to(file)
    for name in ("mine", "my_experiment", "EXPERIMENT"):
        (folder / f"experiments/{name}.py").write_text(MINE)
    objective = '"diffusion", objective="diffusion"'
    (folder / "experiments/diffusion.py").write_text(MINE.replace('"mine"', objective).replace("=stages", "=(Stage(2),)"))
    return folder


@pytest.fixture(scope="module")
def parsed() -> set:
    """Options of commands, with their values, that were parsed in some line; short words alone, for others are free."""
    return set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, folder, parsed, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(plan, "check_compiler", lambda: None)
    for command in commands(page, folder):
        understood(command)
        for ours in command.ours():
            if new := options(ours) - parsed:
                _, name, *words = ours.words
                kind, prog = COMMANDS[name][0], f"a3jax {name}"
                try:
                    kind.parse(words, prog) if hasattr(kind, "parse") else parse(kind, words, prog)
                except BaseException as error:
                    raise AssertionError(f"{command}: {error}") from None
                parsed |= new


def options(command: Command) -> set[tuple[str, ...]]:
    """A command's options with their values: of these only words, for numbers, texts and places are read as they are."""
    _, name, *words = command.words
    found = [[name, *words[:1]] if COMMANDS[name][0].__name__ in ("Train", "Sweep", "Plan") else [name]]
    for word in words:
        if word.startswith("--"):
            found.append([found[0][-1], *word.split("=")])
        elif len(found) > 1 and re.fullmatch(r"[a-z_]+", word):
            found[-1].append(word)
    return set(map(tuple, found))


def understood(command: Command) -> None:
    """What other programs are told is there: extras, targets, files, and the options of scripts."""
    program, *words = command.words
    text = str(command)
    for word in [program, *words, command.stdin]:
        if word.startswith(("launch/", "tests/", "benchmarks/", "experiments/")) and word not in OWN:
            assert (ROOT / word).exists(), text
    if program == "make":
        assert set(words) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), text
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert all(extra in extras for names in named for extra in names.split(",")), text
    if program == "python" and words[0] == "-c":
        compile(words[1], text, "exec")
    elif program == "python":
        script = (ROOT / words[0]).read_text()
        names = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
        assert [name for name in names if not re.search(rf"\b{name}\b", script.replace("-", "_"))] == [], text


OWN = ("experiments/mine.py", "experiments/diffusion.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for block in blocks(page):
        assert block.kind or not re.search(r"^ *a3jax [a-z]", block.text, re.MULTILINE), (
            f"line {block.line} is shell, or what?"
        )
        if block.kind == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")
