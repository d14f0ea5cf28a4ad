"""The one way in which JSON from outside becomes a value: every file, line or body that somebody else may have written.

What is not to be relied on is refused in one line: what is not UTF-8, nesting that exhausts the stack of whoever looks at
it, a name that stands twice in an object, of which readers take one or the other, and numbers that JSON does not have or no
float holds. A byte-order mark before it is passed over.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from a3jax.errors import UserError

DEEPEST = 200
"""Lists and objects inside one another."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotJson(UserError):
    """What was read is no JSON that can be relied on."""

    reason = "not JSON"
    """A few words, the same for all of a kind."""


class NotUtf8(NotJson):
    """What was read is no text at all."""

    reason = "not UTF-8 text"


def value_of(content: bytes | str, where: str) -> Any:
    """The value of a JSON text. A string in it can hold a lone surrogate, and then is no Unicode text; see `parse`.

    Raises `NotJson`, which names `where`.
    """
    text = content if isinstance(content, str) else decoded(content, where)
    try:
        value = json.loads(
            text.removeprefix("\ufeff"), object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        deep = True
    except (json.JSONDecodeError, _NotExact) as error:
        raise NotJson(f"{where} is not JSON: {error}") from None
    except ValueError:  # Python's own limit, whose words are for programmers
        raise NotJson(f"{where} is not JSON: a number in it has thousands of digits") from None
    else:
        deep = text.count("[") + text.count("{") > DEEPEST and _is_deep(value)
    if deep:
        raise NotJson(f"{where} is not JSON: it is nested deeper than {DEEPEST} lists and objects")
    return value


def parse(content: bytes | str, where: str) -> Any:
    """The value of a JSON text, all of whose strings are Unicode text. Raises `NotJson`, which names `where`."""
    text = content if isinstance(content, str) else decoded(content, where)
    value = value_of(text, where)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NotJson(f"{where} is not Unicode text: it holds a lone surrogate, half of a surrogate pair") from None
    return value


def parse_object(content: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object of a text. Raises as `parse`, and `UserError` for any other value."""
    value = parse(content, where)
    if not isinstance(value, dict):
        raise NotJson(f"{where} is not a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises as `parse_object`, and `UserError` if the file cannot be read."""
    return parse_object(content_of(path), str(path))


def content_of(path: Path) -> bytes:
    """All of a file. Raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def decoded(content: bytes, where: str) -> str:
    """Text from its bytes. Raises `NotUtf8`, which names `where`."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} after byte {error.start}"
        raise NotUtf8(f"{where} is not UTF-8 text: {byte}") from None


class _NotExact(ValueError):
    """What Python's reader would take, and JSON does not say."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _NotExact(f"{twice[:40]!r} stands there twice")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _NotExact(f"{digits[:40]} is more than a number can be")
    return number


def _no_constant(name: str) -> NoReturn:
    raise _NotExact(f"{name} is no number of JSON")


def _is_deep(value: Any) -> bool:
    """Whether more than `DEEPEST` lists and objects lie in one another."""
    level = [value]
    for _ in range(DEEPEST):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True
