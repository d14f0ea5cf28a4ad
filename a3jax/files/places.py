"""Where the user says that something lies: on this machine, or in a bucket, gs://BUCKET/NAME or s3://BUCKET/NAME.

`place` makes a path of it, and what takes a path takes either. That of a bucket has the methods of a `Path` that are used
here, and its errors are those of a disk: `OSError` with the number that says whether it is a matter of rights, of a name,
or may pass. This module alone knows what a bucket cannot do:

- It has no appending, no renaming and no locking. Files grow in `a3jax.files.desk`, folders become whole in
  `a3jax.files.folders`, and one writer at a time sees `a3jax.files.holding` to.
- What reads a file by parts of its own, such as mapped memory, gets a copy: `local_copy`, `local_folder`.
- ArrayRecord, Orbax and TensorStore read and write gs:// themselves. On s3:// ArrayRecord finds no records, without an
  error, and Orbax knows no such place: both get copies.

Libraries come from the extra `buckets`. Credentials are found as gcsfs, s3fs and TensorStore find them.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, NamedTuple, cast

import fsspec

from a3jax.errors import UserError, first_line

SCHEMES = ("gs", "s3")
_BUCKET = re.compile(r"^(gs|s3):/+(?=[^/])")
"""Also one that was made a `Path`, which takes a slash from it."""
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/|://")
_FETCHING = threading.Lock()
_AT_ONCE = 16
"""Files that are sent or fetched at a time."""


def place(name: str | os.PathLike[str]) -> Path:
    """The path of a place. Raises `UserError` for any other URL, which would become a folder called `http:`, say."""
    if "\0" in os.fspath(name):
        raise UserError(f"{name} is no path: it holds a zero byte")
    if _BUCKET.match(os.fspath(name)):
        _settle()
        return cast(Path, BucketPath(os.fspath(name)))
    if _URL.search(os.fspath(name)):
        raise UserError(f"{name} is a URL, as only texts to prepare or to evaluate on can be; give a path, gs:// or s3://")
    return Path(name)


def local(name: str | os.PathLike[str]) -> Path:
    """The path of a place that must be of this machine. Raises `UserError` for a URL."""
    if is_local(found := place(name)):
        return found
    raise UserError(f"{found} is a URL, and this is read on this machine only; give a path of this machine")


def is_local(path: Path) -> bool:
    """Whether files can be appended to, renamed, locked and mapped there."""
    return not isinstance(path, BucketPath)


class Status(NamedTuple):
    """What a bucket says of an object, by the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int
    """Of a folder 0."""


class BucketPath(PurePosixPath):
    """A path in a bucket. A folder is there as long as an object below it is.

    Everything raises `OSError` as a disk does, after the libraries have tried again for half a minute.
    """

    def __str__(self) -> str:
        return _BUCKET.sub(r"\1://", super().__str__())

    @property
    def scheme(self) -> str:
        """`gs` or `s3`."""
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The name inside the bucket."""
        return "/".join(self.parts[2:])

    def resolve(self) -> "BucketPath":
        """Itself: there are no links."""
        return self

    absolute = expanduser = resolve

    def exists(self) -> bool:
        """Whether an object or a folder of this name is there."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether an object of this name is there."""
        return (info := self._info()) is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Whether objects are there below this name."""
        return (info := self._info()) is not None and info["type"] == "directory"

    def is_symlink(self) -> bool:
        """There are none."""
        return False

    def samefile(self, other: "str | os.PathLike[str]") -> bool:
        """Whether both are one name."""
        return str(self) == str(place(other))

    def stat(self) -> Status:
        """Raises `FileNotFoundError` if nothing is there."""
        if (info := self._info()) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        changed = info.get("mtime") or info.get("LastModified")
        return Status(info["size"] or 0, round(changed.timestamp() * 1e9) if changed else 0)

    def open(self, mode: str = "r", encoding: str = "utf-8", errors: str | None = None) -> IO[Any]:
        """To read, or to write anew; what is written appears when it is closed."""
        if set(mode) - set("rwbt"):
            raise ValueError(f"a bucket has no mode {mode}")
        with _as_a_disk(self, writing="w" in mode) as files:
            text = {} if "b" in mode else {"encoding": encoding, "errors": errors}
            return cast(IO[Any], files.open(str(self), mode, **text))

    def read_bytes(self) -> bytes:
        """All of an object."""
        with _as_a_disk(self) as files:
            return cast(bytes, files.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The same as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, content: bytes) -> int:
        """Write an object, whole or not at all."""
        with _as_a_disk(self, writing=True) as files:
            files.pipe_file(str(self), content)
        return len(content)

    def write_text(self, content: str, encoding: str = "utf-8") -> int:
        """The same as text."""
        return self.write_bytes(content.encode(encoding))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there with its first object."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        try:
            with _as_a_disk(self) as files:
                files.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> "Iterator[BucketPath]":
        """What is in a folder."""
        with _as_a_disk(self) as files:
            names = files.ls(str(self), detail=False)
        yield from self._named(names)

    def glob(self, pattern: str) -> "Iterator[BucketPath]":
        """What is below a folder, by shell pattern."""
        with _as_a_disk(self) as files:
            names = files.glob(f"{self}/{pattern}")
        yield from self._named(names)

    def rglob(self, pattern: str) -> "Iterator[BucketPath]":
        """The same, however deep: objects alone."""
        yield from (path for path in (self / name for name in sizes(cast(Path, self))) if path.match(pattern))

    def _named(self, names: list[str]) -> "Iterator[BucketPath]":
        paths = (BucketPath(f"{self.scheme}://{name.rstrip('/')}") for name in sorted(names))
        return (path for path in paths if path != self)

    def _info(self) -> dict[str, Any] | None:
        try:
            with _as_a_disk(self) as files:
                return cast(dict[str, Any], files.info(str(self)))
        except FileNotFoundError:
            return None


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below a folder, by its name there, in one listing; empty without such a folder."""
    if is_local(folder):
        return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    with _as_a_disk(folder) as files:
        found = files.find(str(folder), detail=True)
    root = str(folder).split("://")[1].rstrip("/") + "/"
    return {name.removeprefix(root): info["size"] for name, info in found.items() if info["type"] == "file"}


def scratch(path: Path) -> Path:
    """Where this machine keeps its part of the work on a place in a bucket: below `A3JAX_SCRATCH`, or ~/.cache/a3jax."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("A3JAX_SCRATCH") or cache / "a3jax" / "buckets", path.parts[0][:-1], *path.parts[1:])


def local_copy(file: Path) -> Path:
    """A file that can be mapped: itself, or a copy, fetched once for every version of it. Raises `OSError`."""
    if is_local(file):
        return file
    copy = scratch(file.parent) / f".{version(file)}" / file.name
    with _FETCHING:  # threads that read one shard, say, fetch it once
        if not copy.is_file():
            fetch(file, copy)
    return copy


def local_folder(folder: Path) -> Path:
    """The same of a folder and all that is below it."""
    if is_local(folder):
        return folder
    copy = scratch(folder.parent) / f".{version(folder)}" / folder.name
    missing = [name for name in sizes(folder) if not (copy / name).is_file()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: fetch(folder / name, copy / name), missing))
    return copy


def version(path: Path) -> str:
    """Changes when a file does, or anything in a folder; on this machine, of a folder, with what is directly in it."""
    if is_local(path):
        return str(path.stat().st_mtime_ns)
    with _as_a_disk(path) as files:
        found = files.find(str(path), detail=True).values()
    told = [(info["name"], info["size"], info.get("generation") or info.get("ETag")) for info in found]
    return hashlib.sha256(repr(sorted(told)).encode()).hexdigest()[:16]


def for_array_record(file: Path) -> str:
    """What ArrayRecord opens to read a file."""
    return str(file if _has(file, "gs") else local_copy(file))


def for_orbax(folder: Path) -> Path:
    """What Orbax and TensorStore read a folder from."""
    return folder if _has(folder, "gs") else local_folder(folder).resolve()


def takes_orbax(folder: Path) -> bool:
    """Whether Orbax writes there."""
    return _has(folder, "gs")


def _has(path: Path, scheme: str) -> bool:
    return not isinstance(path, BucketPath) or path.scheme == scheme


def kvstore(path: Path) -> dict[str, Any]:
    """TensorStore's key-value store of a folder, or of an object where it is used so."""
    if not isinstance(path, BucketPath):
        return {"driver": "file", "path": f"{path.resolve()}/"}
    if path.scheme == "gs":
        return {"driver": "gcs", "bucket": path.bucket, "path": f"{path.key}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    more = {"endpoint": endpoint, "aws_region": region or "us-east-1"} if endpoint else {}
    return {"driver": "s3", "bucket": path.bucket, "path": f"{path.key}/", **more}


def fetch(file: Path, copy: Path) -> None:
    """Copy a file here; it appears whole."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = copy.with_name(f"{copy.name}.{uuid.uuid4().hex[:8]}.new")  # threads may fetch the same
    try:
        with _as_a_disk(file) as files:
            files.get_file(str(file), str(unfinished))
            size = files.info(str(file))["size"]
        if unfinished.stat().st_size != size:
            raise OSError(errno.EIO, "it came in part only", str(file))
        unfinished.replace(copy)
    finally:
        unfinished.unlink(missing_ok=True)


def send(file: Path, to: Path) -> str:
    """Copy a file of this machine into a bucket, where it appears whole; its MD5, which the bucket has compared too."""
    with file.open("rb") as content:
        md5 = hashlib.file_digest(content, "md5")
    with _as_a_disk(to, writing=True) as files:
        files.put_file(str(file), str(to))
        info = files.info(str(to))
    known = info.get("md5Hash") or info.get("ETag", "").strip('"')
    theirs = known if "-" not in known else ""  # of several parts Amazon's is something else
    ours = md5.hexdigest() if "ETag" in info else base64.b64encode(md5.digest()).decode()
    if info["size"] != file.stat().st_size or (theirs and theirs != ours):
        raise OSError(errno.EIO, "it is not what was sent there", str(to))
    return md5.hexdigest()


def copy_inside(folder: Path, to: Path) -> None:
    """Copy all that is below a folder of a bucket to another name in it, and then remove it there."""
    names = sizes(folder)
    with _as_a_disk(to, writing=True) as files:
        for name in names:
            files.cp_file(str(folder / name), str(to / name))
    remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError), _as_a_disk(folder) as files:
        files.rm(str(folder), recursive=True)


@functools.cache
def _settle() -> None:
    """How buckets are opened, by Orbax too: what others write is seen at once, and trouble that passes is waited for."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask another service for every bucket
    again = {"retries": {"mode": "standard", "max_attempts": 10}}
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    fsspec.config.conf.setdefault("s3", {}).setdefault("use_listings_cache", False)
    fsspec.config.conf["s3"].setdefault("config_kwargs", again)


@contextlib.contextmanager
def _as_a_disk(path: PurePath, writing: bool = False) -> Iterator[Any]:
    """The file system of a bucket, whose errors become those that a disk has."""
    assert isinstance(path, BucketPath)
    try:
        yield fsspec.filesystem({"gs": "gcs"}.get(path.scheme, path.scheme))
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}, which is not installed; pip install 'a3jax[buckets]'") from None
    except Exception as error:  # each library has its own
        raise as_a_disk(error, path, writing) from None


def as_a_disk(error: Exception, path: PurePath, writing: bool = False) -> OSError:
    """An error of a bucket's library, as a disk would raise it. What is not known may pass."""
    why, kind = first_line(error), type(error).__name__
    status = str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError):
        missing = (errno.ENXIO, "there is no such bucket") if writing else (errno.ENOENT, os.strerror(errno.ENOENT))
        return OSError(*missing, str(path))
    forbidden = "Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED", "AccessDenied", "Access Denied"
    if (
        isinstance(error, PermissionError)
        or "Credentials" in kind
        or status in ("401", "403")
        or any(word in why for word in forbidden)
    ):
        return PermissionError(errno.EACCES, f"no right to it ({why})", str(path))
    return OSError(errno.EIO, f"the bucket does not answer as it should ({kind}: {why})", str(path))
