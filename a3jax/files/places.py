"""Where the user says that something lies: on this machine, or in a bucket, gs://BUCKET/NAME or s3://BUCKET/NAME.

`place` makes a path of it, and what takes a path takes either: that of a bucket (`a3jax.files.bucket`) has the methods of a
`Path` that are used here. This module alone knows what a bucket cannot do:

- It has no appending, no renaming and no locking. Files grow in `a3jax.files.desk`, folders become whole in
  `a3jax.files.folders`, and one writer at a time sees `a3jax.files.holding` to.
- What reads a file by parts of its own, such as mapped memory, gets a copy: `local_copy`, `local_folder`.
- ArrayRecord, Orbax and TensorStore read and write gs:// themselves. On s3:// ArrayRecord finds no records, without an
  error, and Orbax knows no such place: both get copies.
"""

import base64
import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from a3jax.errors import UserError
from a3jax.files.bucket import BUCKET, BucketPath, as_a_disk, settle

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/|://")
_FETCHING = threading.Lock()
_AT_ONCE = 16
"""Files that are sent or fetched at a time."""


def place(name: str | os.PathLike[str]) -> Path:
    """The path of a place. Raises `UserError` for any other URL, which would become a folder called `http:`, say."""
    if "\0" in os.fspath(name):
        raise UserError(f"{name} is no path: it holds a zero byte")
    if BUCKET.match(os.fspath(name)):
        settle()
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


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below a folder, by its name there, in one listing; empty without such a folder."""
    if is_local(folder):
        return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return cast(BucketPath, folder).sizes()


def cache(name: str) -> Path:
    """Where this machine keeps what it need not find out again, of one kind: ~/.cache/a3jax/NAME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "a3jax", name)


def scratch(path: Path) -> Path:
    """Where this machine keeps its part of the work on a place in a bucket: below `A3JAX_SCRATCH`, or ~/.cache/a3jax."""
    return Path(os.environ.get("A3JAX_SCRATCH") or cache("buckets"), path.parts[0][:-1], *path.parts[1:])


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
        found = path.stat()  # times can be set back, but for that of the last change of any kind
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"
    with as_a_disk(path) as files:
        found = files.find(str(path), detail=True).values()
    told = [(info["name"], info["size"], info.get("generation") or info.get("ETag")) for info in found]
    return hashlib.sha256(repr(sorted(told)).encode()).hexdigest()[:16]


def for_array_record(file: Path) -> str:
    """What ArrayRecord opens to read a file."""
    return str(file if _has(file, "gs") else local_copy(file))


def for_orbax(folder: Path) -> Path:
    """What Orbax and TensorStore read a folder from, which must begin at the root."""
    return (folder if _has(folder, "gs") else local_folder(folder)).resolve()


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
        with as_a_disk(file) as files:
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
    with as_a_disk(to, writing=True) as files:
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
    with as_a_disk(to, writing=True) as files:
        for name in names:
            files.cp_file(str(folder / name), str(to / name))
    remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError), as_a_disk(folder) as files:
        files.rm(str(folder), recursive=True)
