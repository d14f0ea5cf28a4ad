"""A folder in a bucket, which is sent part by part, and is whole once it says what its parts are.

FOLDER/a3jax.parts.json    while it is sent, a lease (`a3jax.files.holding`); in the end, written last, the bytes and MD5 of
                           every part
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from a3jax.errors import UserError
from a3jax.files.holding import is_lease
from a3jax.files.outside_json import parse_object
from a3jax.files.places import is_local, send, sizes

PARTS = "a3jax.parts.json"
_AT_ONCE = 8


def send_parts(folder: Path, out: Path, but: str = PARTS) -> bytes:
    """Send all of a folder of this machine but for one file, and return what is then to stand in `PARTS`.

    What an earlier try has sent is sent again.
    """
    names = [name for name in sizes(folder) if name not in (but, PARTS)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sums = list(pool.map(lambda name: send(folder / name, out / name), names))
    for name in sizes(out).keys() - {*names, PARTS}:  # of a try that was made from something else
        (out / name).unlink()
    parts = {name: {"bytes": (folder / name).stat().st_size, "md5": md5} for name, md5 in zip(names, sums)}
    return json.dumps({"parts": parts}, indent=1).encode()


def is_there(folder: Path) -> bool:
    """Whether a folder is there, and not still to be finished."""
    return folder.is_dir() and (is_local(folder) or not is_begun(folder))


def is_begun(folder: Path) -> bool:
    """Whether a folder in a bucket is being written, or was until a kill."""
    return (folder / PARTS).is_file() and is_lease((folder / PARTS).read_bytes())


def check_whole(folder: Path) -> None:
    """Raise `UserError` for a folder in a bucket that is being written, or of which parts are gone or other than they were.

    One that was copied there by other means says nothing of its parts, and passes.
    """
    if is_local(folder) or not (manifest := folder / PARTS).is_file():
        return
    content = manifest.read_bytes()
    if is_lease(content):
        raise UserError(f"{folder} is not whole: it is being written, or was until a kill; write it with the same command")
    parts, there = parse_object(content, str(manifest)).get("parts", {}), sizes(folder)
    for name, part in parts.items():
        if there.get(name) != part["bytes"]:
            what = "is missing" if name not in there else f"is damaged ({there[name]:,} bytes, not {part['bytes']:,})"
            raise UserError(f"{folder / name} {what}; write the folder again")
