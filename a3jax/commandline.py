"""Typed command lines: a dataclass becomes options through tyro, and a mistake becomes one line that names the option."""

import contextlib
import dataclasses
import inspect
import io
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from a3jax.config import nearest
from a3jax.errors import UserError

T = TypeVar("T")


def parse(target: type[T], args: Sequence[str], prog: str, default: T | None = None, description: str | None = None) -> T:
    """Parse `args` as the fields of the dataclass `target`. `--help` prints and exits; a mistake raises `UserError`."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                target,
                args=list(args),
                prog=prog,
                default=tyro.MISSING_NONPROP if default is None else default,
                description=description or inspect.getdoc(target),
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_message(printed.getvalue())}; see {prog} --help") from None
    if unknown:
        known = [f"--{name}" for name in _names(target, default)]
        kind = "option" if unknown[0].startswith("-") else "argument"
        raise UserError(f"unknown {kind} '{unknown[0]}'{nearest(unknown[0], known)}; see {prog} --help")
    return value


def _message(printed: str) -> str:
    """The first sentence inside the frame that tyro draws around an error; where it cannot draw, the frame is blank."""
    lines = [line.strip("│╭╰╮╯─| ") for line in printed.splitlines()[1:]]
    lines = ["" if set(line) <= {"-"} else line for line in lines]
    sentence = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return " ".join(sentence) or "the command line could not be read"


def _names(target: Any, value: Any, prefix: str = "") -> list[str]:
    """Every option of a dataclass, dotted, as tyro writes it."""
    names: list[str] = []
    for field in dataclasses.fields(target if value is None else value):
        name = prefix + field.name.replace("_", "-").strip("-")
        item = getattr(value, field.name, None)
        if dataclasses.is_dataclass(item):
            names += _names(item, item, f"{name}.")
        elif isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
            names += [leaf for i, part in enumerate(item) for leaf in _names(part, part, f"{name}.{i}.")]
        else:
            names.append(name)
    return names
