"""The pages of the documentation as a reader meets them: their blocks of code, and the commands that these would start.

What a block of shell would start is found out by a shell. It runs the block where there are no programs, and what it looks
for in vain is written down, with its words and its standard input, in place of being started.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
_SHELL = re.compile(
    r"([A-Z0-9_]+=(\"[^\"]*\"|'[^']*'|\$\([^)]*\)|\S*) )*"
    r"((a3jax|curl|env|export|gcloud|make|pip|pytest|python|sbatch|sky|stages\(\)|xpk) |launch/)"
)
"""How shell begins here; blocks without a language that begin otherwise show a file, a formula or what was printed."""
_FIELD, _NEWLINE = "\x1f", "\x1e"
_RECORDER = r"""command_not_found_handle() {
    local IFS=$'\x1f' input=$(/usr/bin/readlink /proc/$BASHPID/fd/0)
    local fields=("$line" "$input" "$@" ${COMMAND:+"$COMMAND"})
    local record="${fields[*]}"
    printf '%s\n' "${record//$'\n'/$'\x1e'}" >&3  # one line, so one write: both ends of a pipe may come at once
    if [ "$1" != a3jax ]; then echo 0; fi
}
"""
_INNER = re.compile(r"(?:^|=|exec )(a3jax .*)", re.DOTALL)


class Block(NamedTuple):
    """A block of code on a page, and the line that it begins in."""

    line: int
    kind: str
    """`sh`, `python`, `diff`, or empty for what is only shown."""
    text: str


class Command(NamedTuple):
    """What a block of shell would start."""

    line: int
    words: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {shlex.join(self.words)}" + (f" < {self.stdin}" if self.stdin else "")

    def ours(self) -> Iterator["Command"]:
        """The commands of a3jax in it: itself, or what it hands to another program, as words or in one word."""
        if "a3jax" in self.words:
            yield self._replace(words=self.words[self.words.index("a3jax") :])
        for found in filter(None, map(_INNER.search, self.words)):
            yield self._replace(words=tuple(shlex.split(re.sub(r"\$\w+", "0", found[1]))))


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, fenced and indented."""
    found = []
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            kind = token.info or ("sh" if _SHELL.match(token.content) else "")
            found.append(Block(token.map[0] + 1, kind, token.content))
    return found


def commands(page: Path, folder: Path) -> list[Command]:
    """What the blocks of shell of a page would start in a folder, in order (both ends of a pipe in either). It gets a
    `launch/`."""
    for file in ROOT.glob("launch/*.*"):
        stub = folder / "launch" / file.name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/bash\n{_RECORDER}command_not_found_handle "launch/{file.name}" "$@"\n')
        stub.chmod(0o755)
    shell = [block for block in blocks(page) if block.kind == "sh"]
    script = "".join(f"export line={block.line}\n(\n{block.text}\n)\n" for block in shell)
    for name in re.findall(r" < (\S+)", script):
        (folder / name).touch()  # the reader's own file
    reading, writing = os.pipe()
    with open(reading, "rb") as log:
        with open(writing, "wb"):
            done = subprocess.run(
                ["/bin/bash", "-c", f"exec 3>&{writing}\n{_RECORDER}{script}"],
                cwd=folder,
                env={"PATH": "/nowhere", "HOME": "home"},
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        records = log.read().decode().split("\n")[:-1]
    assert not done.stderr, f"{page.name}: {done.stderr}"
    found = []
    for record in records:
        line, stdin, *words = record.replace(_NEWLINE, "\n").split(_FIELD)
        found.append(
            Command(int(line), tuple(words), os.path.relpath(stdin, folder) if stdin.startswith(str(folder)) else "")
        )
    return found
