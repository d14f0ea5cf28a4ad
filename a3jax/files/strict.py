"""Configurations as JSON, strictly: an unknown or ill-typed field is a `UserError` that names the nearest known one."""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from a3jax.errors import UserError
from a3jax.files.outside_json import content_of, parse

T = TypeVar("T")

LONGEST_SHOWN = 80
"""Characters of a wrong value in a message."""


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` where something close to `name` is known, else an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def misspelt(name: str, known: typing.Iterable[str]) -> str:
    """As `nearest`, for names of which similar ones are other things: only what is one slip away, or written otherwise.

    A slip puts in, leaves out, changes or swaps letters; a digit is none, as llama4 is not llama.
    """
    for other in known:
        here, there = _alphanumeric(name), _alphanumeric(other)
        if _one_slip(here, there) and _digits(here) == _digits(there):
            return f"; did you mean '{other}'?"
    return ""


def _alphanumeric(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _one_slip(a: str, b: str) -> bool:
    """Whether two names are equal but for one letter, or for two neighbours that are swapped."""
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) <= 1 or (len(a) == len(b) == 2 and a == b[::-1])


def to_json(config: Any) -> str:
    """A configuration dataclass as indented JSON. Raises `UserError` for a number that JSON does not have."""
    tree = dataclasses.asdict(config)
    for name, value in flat(tree):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}; it must be finite")
    return json.dumps(tree, indent=2) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of all leaves of `dataclasses.asdict`'s result."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return [(name, value)]
    return [leaf for key, item in items for leaf in flat(item, f"{name}.{key}" if name else str(key))]


def from_json(cls: type[T], text: str | bytes, where: str) -> T:
    """Rebuild a configuration dataclass from `to_json`'s text; `where` names the file in errors."""
    return build(cls, parse(text, where), where)


def read(cls: type[T], path: Path) -> T:
    """`from_json` of a file, with a `UserError` if it is not there."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return from_json(cls, content_of(path), str(path))


def check_types(made: Any) -> None:
    """Raise `UserError` for a field of a dataclass, or of those in it, whose value is of another type: Python checks none."""
    for name, hint in _hints(made.__class__).items():
        build(hint, plain(getattr(made, name)), name)


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(expected: Any, value: Any, where: str) -> Any:
    """`value` (parsed JSON) as `expected`, a type made of dataclasses, tuples, literals, unions, scalars and `Any`.

    Of a union, a list is taken as its tuple, an object as the dataclass whose fields are the nearest to its own, and anything
    else as its own type or the first. Raises `UserError` that begins with `where` if it is anything else.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if isinstance(expected, type) and dataclasses.is_dataclass(expected) and isinstance(value, dict):
        hints = _hints(expected)
        for name in value:
            if name not in hints:
                raise UserError(f"{where}: unknown field '{name}'{nearest(name, hints)}")
        missing = [
            f.name
            for f in dataclasses.fields(expected)
            if f.name not in value and f.default is f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise UserError(f"{where}: field '{missing[0]}' is missing")
        fields = {name: build(hints[name], item, f"{where}: {name}") for name, item in value.items()}
        try:
            return expected(**fields)
        except UserError as error:  # from values that its type allows and it does not
            raise UserError(f"{where}: {error}") from None
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        written = [a for a in kinds if type(value) is (list if typing.get_origin(a) is tuple else a)]
        if isinstance(value, dict):
            kinds = sorted(kinds, key=lambda kind: len(_fields(kind) ^ value.keys()))
        return build((written or kinds)[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: build(arguments[1], item, f"{where}[{key}]") for key, item in value.items()}
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where} is {_shown(value)}; expected one of {', '.join(arguments)}{nearest(str(value), arguments)}")
    if expected is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if isinstance(expected, type) and type(value) is expected:
        return value
    raise UserError(f"{where} is {_shown(value)}; expected {getattr(expected, '__name__', expected)}")


def _shown(value: Any) -> str:
    """A value in a message, which is to stay a line that can be read."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
