"""Files on disk or in a bucket (any URL that fsspec knows), found in folders, and their bytes, decompressed by suffix."""

import contextlib
import gzip
import hashlib
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import zstandard
from fsspec.implementations.local import LocalFileSystem

from a3jax.errors import UserError, first_line

COMPRESSED = (".gz", ".zst")
UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading bytes can raise."""
_BLOCK = 2**20


@dataclass(frozen=True)
class File:
    """A file by path or URL, as the user would write it."""

    name: str
    bytes: int
    """On disk: compressed, if it is."""
    identity: str
    """Changes when the file does: a digest of all that its file system says of it."""

    @property
    def compressed(self) -> bool:
        """Whether it can only be read from its beginning."""
        return self.name.endswith(COMPRESSED)


@dataclass(frozen=True)
class FileSource:
    """What the sources that are one file have in common."""

    file: File

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.file.name

    @property
    def identity(self) -> str:
        """Changes when the file does."""
        return self.file.identity


def find(source: str, include: Sequence[str], exclude: Sequence[str]) -> list[File]:
    """A file, or those of a folder that the shell patterns choose, by name; hidden ones inside folders are passed over.

    Raises `UserError` if there is nothing of that name, or no way to it.
    """
    with _reached(source) as (system, root):
        if system.isfile(root):
            return [_file(source, system.info(root))]
        if not system.isdir(root):
            raise UserError(f"{source} does not exist")
        found = system.find(root, detail=True)
    files = []
    for path, info in found.items():
        inside = path.removeprefix(root).strip("/")
        wanted = any(fnmatch(inside, pattern) for pattern in include) and not any(fnmatch(inside, p) for p in exclude)
        hidden = any(name.startswith(".") for name in inside.split("/"))
        if wanted and not hidden and (info["type"] == "file" or system.isfile(path)):  # links to files count
            files.append((inside.split("/"), _file(f"{source.rstrip('/')}/{inside}", info)))
    return [file for _, file in sorted(files, key=lambda item: item[0])]


def names_inside(source: str) -> set[str]:
    """The names in a folder; none if it is not one. Raises `UserError` if there is no way to it."""
    with _reached(source) as (system, root):
        return {path.rsplit("/", 1)[-1] for path in system.ls(root, detail=False)} if system.isdir(root) else set()


def open_raw(file: File) -> IO[bytes]:
    """The bytes of a file as they are stored."""
    system, path = fsspec.core.url_to_fs(file.name)
    return cast(IO[bytes], system.open(path, "rb"))


@contextlib.contextmanager
def open_bytes(file: File) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed. Reading raises one of `UNREADABLE` for one that is damaged or cut short."""
    with open_raw(file) as raw:
        if file.name.endswith(".gz"):
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        elif file.name.endswith(".zst"):
            yield io.BufferedReader(_Zstd(raw), _BLOCK)
        else:
            yield raw


def is_local(file: File) -> bool:
    """Whether a file lies on this machine."""
    return isinstance(fsspec.core.url_to_fs(file.name)[0], LocalFileSystem)


@contextlib.contextmanager
def local_copy(file: File) -> Iterator[str]:
    """A path for libraries that read local files only: the file's own, or that of a copy while it is needed."""
    system, path = fsspec.core.url_to_fs(file.name)
    if isinstance(system, LocalFileSystem):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="a3jax-") as folder:
        copy = Path(folder) / Path(path).name
        with open_raw(file) as raw, copy.open("wb") as out:
            shutil.copyfileobj(raw, out, _BLOCK)
        yield str(copy)


@contextlib.contextmanager
def _reached(source: str) -> Iterator[tuple[Any, str]]:
    """The file system of a path or URL, and the path within it; what it raises inside becomes a `UserError`."""
    try:
        yield fsspec.core.url_to_fs(source)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{source} needs a package that is not installed: {error.name or first_line(error)}") from None
    except Exception as error:  # every kind of bucket has errors of its own
        raise UserError(f"{source} cannot be opened: {first_line(error)}") from None


def _file(name: str, info: dict[str, Any]) -> File:
    told = repr(sorted((key, str(value)) for key, value in info.items() if key != "name"))
    return File(name, info.get("size") or 0, hashlib.sha256(told.encode()).hexdigest())


class _Zstd(io.RawIOBase):
    """Decompresses any number of zstd frames, and knows when the last one is not whole, which zstandard's reader does not."""

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._frame, self._begun = self._new(), False
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new(), False
            block = block or self._raw.read(_BLOCK // 8)
            if not block:
                if self._begun:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            self._begun = True
            self._waiting = self._frame.decompress(block)
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size

    @staticmethod
    def _new() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
