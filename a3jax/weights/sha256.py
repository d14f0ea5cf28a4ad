"""SHA-256 sums of weight files, in the format of `sha256sum`: `sha256sum -c SHA256SUMS` checks a folder too."""

import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from a3jax.errors import UserError
from a3jax.progress import Progress

SUMS = "SHA256SUMS"
_BLOCK = 16 * 2**20


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in hexadecimal."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def read(folder: Path) -> dict[str, str]:
    """File name -> sum, as the folder lists them; empty if it lists none."""
    if not (folder / SUMS).is_file():
        return {}
    lines = [line.split() for line in (folder / SUMS).read_text().splitlines()]
    return {line[-1]: line[0] for line in lines if len(line) == 2 and is_digest(line[0])}


def write(folder: Path, sums: Mapping[str, str]) -> None:
    """List the sums of files of the folder in it."""
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def check(expected: Mapping[Path, str]) -> None:
    """Read files and compare. Raises `UserError` naming the first whose sum is another."""
    with Progress("verify", sum(file.stat().st_size for file in expected), "bytes") as progress:
        for path, digest in expected.items():
            if _sum(path, progress.advance) != digest:
                raise UserError(
                    f"{path} is damaged: its SHA-256 is not the one expected, {digest[:12]}...; download it again"
                )


def of_all(files: Mapping[str, Path]) -> str:
    """One sum of several files and their names, wherever they lie: that of the list that `sha256sum` would print of them.

    Reads all of them, several at a time. Raises `OSError` for a file that cannot be read.
    """
    names, total = sorted(files), sum(file.stat().st_size for file in files.values())
    with Progress("verify", total, "bytes") as progress, ThreadPoolExecutor() as readers:
        sums = list(readers.map(lambda name: _sum(files[name], progress.advance), names))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in zip(sums, names)).encode()).hexdigest()


def _sum(path: Path, advance: Callable[[int], None]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            advance(len(block))
    return found.hexdigest()
