"""A path in a bucket: the methods of a `Path` that are used here, by fsspec, and the errors that a disk would raise.

Libraries come from the extra `buckets`, and are imported when a bucket is first used. They find credentials as they do.
"""

import contextlib
import errno
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import PurePath, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from a3jax.errors import UserError, first_line

BUCKET = re.compile(r"^(gs|s3):/+(?=[^/])")
"""How such a path begins, also one that was made a `Path`, which takes a slash from it."""


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
        return BUCKET.sub(r"\1://", super().__str__())

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
        return str(self) == BUCKET.sub(r"\1://", os.fspath(other))

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
        with as_a_disk(self, writing="w" in mode) as files:
            text = {} if "b" in mode else {"encoding": encoding, "errors": errors}
            return cast(IO[Any], files.open(str(self), mode, **text))

    def read_bytes(self) -> bytes:
        """All of an object."""
        with as_a_disk(self) as files:
            return cast(bytes, files.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The same as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, content: bytes) -> int:
        """Write an object, whole or not at all."""
        with as_a_disk(self, writing=True) as files:
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
            with as_a_disk(self) as files:
                files.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> "Iterator[BucketPath]":
        """What is in a folder."""
        with as_a_disk(self) as files:
            names = files.ls(str(self), detail=False)
        yield from self._named(names)

    def glob(self, pattern: str) -> "Iterator[BucketPath]":
        """What is below a folder, by shell pattern."""
        with as_a_disk(self) as files:
            names = files.glob(f"{self}/{pattern}")
        yield from self._named(names)

    def rglob(self, pattern: str) -> "Iterator[BucketPath]":
        """The same, however deep: objects alone."""
        yield from (path for path in (self / name for name in self.sizes()) if path.match(pattern))

    def sizes(self) -> dict[str, int]:
        """The bytes of every object below a folder, by its name there, in one listing; empty without such a folder."""
        with as_a_disk(self) as files:
            found = files.find(str(self), detail=True)
        root = f"{self.bucket}/{self.key}".rstrip("/") + "/"
        return {name.removeprefix(root): info["size"] for name, info in found.items() if info["type"] == "file"}

    def _named(self, names: list[str]) -> "Iterator[BucketPath]":
        paths = (BucketPath(f"{self.scheme}://{name.rstrip('/')}") for name in sorted(names))
        return (path for path in paths if path != self)

    def _info(self) -> dict[str, Any] | None:
        try:
            with as_a_disk(self) as files:
                return cast(dict[str, Any], files.info(str(self)))
        except FileNotFoundError:
            return None


@functools.cache
def settle() -> None:
    """How buckets are opened, by Orbax too: what others write is seen at once, and trouble that passes is waited for."""
    import fsspec

    for library in map(logging.getLogger, ("gcsfs", "s3fs")):  # they log each failure with its traceback, and raise it too
        library.addHandler(logging.NullHandler())
        library.propagate = False
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask another service for every bucket
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    fsspec.config.conf.setdefault("s3", {}).setdefault("use_listings_cache", False)
    fsspec.config.conf["s3"].setdefault("config_kwargs", {"retries": {"mode": "standard", "max_attempts": 4}})


@functools.cache
def _patient(scheme: str) -> None:
    """Have `s3://` tried again after all that may pass, as `gs://` is; botocore knows no 429."""
    if scheme == "s3":
        import s3fs
        from botocore.exceptions import ConnectionError as Unconnected

        def passes(error: Exception) -> bool:
            status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
            return isinstance(error, Unconnected) or status in (429, 500, 502, 503, 504)

        s3fs.S3FileSystem.retries = 10
        s3fs.core.set_custom_error_handler(passes)


@contextlib.contextmanager
def as_a_disk(path: PurePath, writing: bool = False) -> Iterator[Any]:
    """The file system of a bucket, whose errors become those that a disk has."""
    assert isinstance(path, BucketPath)
    import fsspec

    try:
        _patient(path.scheme)
        yield fsspec.filesystem({"gs": "gcs"}.get(path.scheme, path.scheme))
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}, which is not installed; pip install 'a3jax[buckets]'") from None
    except Exception as error:  # each library has its own
        raise disk_error(error, path, writing) from None


def disk_error(error: Exception, path: PurePath, writing: bool = False) -> OSError:
    """An error of a bucket's library, as a disk would raise it. What is not known may pass."""
    why, kind = first_line(error), type(error).__name__
    status = str(getattr(error, "code", ""))
    if why.startswith("<"):  # a page, and no words
        why = f"status {status}"
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
