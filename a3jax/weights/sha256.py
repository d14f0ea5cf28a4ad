"""SHA-256 sums of weight files, in the format of `sha256sum`: `sha256sum -c SHA256SUMS` checks a folder too."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from a3jax.errors import UserError
from a3jax.files.folders import write_whole
from a3jax.files.outside_json import parse_object
from a3jax.files.places import cache, version
from a3jax.progress import Progress

SUMS = "SHA256SUMS"
SETTLED_SECONDS = 10.0
"""How long a file must have stayed as it is for its sum to be remembered."""
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

    Reads them, several at a time, but for those whose sum is known from an earlier call, and that are what they were since.
    Raises `OSError` for a file that cannot be read.
    """
    names, known = sorted(files), _Known(files)
    with ThreadPoolExecutor() as readers:
        versions = dict(zip(names, readers.map(lambda name: version(files[name]), names)))
        unread = [name for name in names if known.sum(name, versions[name]) is None]
        with Progress("verify", sum(files[name].stat().st_size for name in unread), "bytes") as progress:
            read = dict(zip(unread, readers.map(lambda name: _sum(files[name], progress.advance), unread)))
    known.keep(read, versions)
    sums = (read.get(name) or known.sum(name, versions[name]) for name in names)
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in zip(sums, names)).encode()).hexdigest()


class _Known:
    """The sums of some files that this machine has read before, each with the version of the file that it is of.

    ~/.cache/a3jax/sums/HASH.json    for one set of files; what is wrong with it costs another reading, and nothing else
    """

    def __init__(self, files: Mapping[str, Path]):
        self._files = files
        paths = sorted(str(file.resolve()) for file in files.values())
        self._kept = cache("sums") / f"{hashlib.sha256(repr(paths).encode()).hexdigest()[:32]}.json"
        try:
            self._sums = parse_object(self._kept.read_bytes(), str(self._kept))
        except (OSError, UserError):
            self._sums = {}

    def sum(self, name: str, now: str) -> str | None:
        """That of a file, if its version is the one that was read."""
        match self._sums.get(name):
            case [str(then), str(digest)] if then == now and is_digest(digest):
                return digest
        return None

    def keep(self, read: Mapping[str, str], versions: Mapping[str, str]) -> None:
        """Remember sums that were read of these versions, but for files that changed meanwhile, or did just before."""
        sums = {name: [versions[name], digest] for name, digest in read.items() if self._is_settled(name, versions[name])}
        if sums:
            with contextlib.suppress(UserError):
                write_whole(self._kept, json.dumps({**self._sums, **sums}))

    def _is_settled(self, name: str, before: str) -> bool:
        """Whether the next change is seen: file systems count time in steps, and two changes in one step look like one."""
        return (
            time.time() - self._files[name].stat().st_mtime_ns / 1e9 > SETTLED_SECONDS
            and version(self._files[name]) == before
        )


def _sum(path: Path, advance: Callable[[int], None]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            advance(len(block))
    return found.hexdigest()
