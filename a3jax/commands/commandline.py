"""Typed command lines: a dataclass becomes options through tyro, and a mistake becomes one line that names the option."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from a3jax.config import Dtype
from a3jax.devices.joined import ALONE, Devices
from a3jax.devices.processes import is_alone
from a3jax.errors import UserError
from a3jax.files.places import place
from a3jax.files.reading import STDIN
from a3jax.files.strict import nearest

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from a3jax.weights.loading import Model

T = TypeVar("T")

Text = Annotated[str | None, arg(constructor=str, help_behavior_hint="")]
"""A string that may be left out. Unlike with a plain `str | None`, the word None is a string."""
Json = Annotated[bool, arg(help="Print the result as one JSON object, the last line of standard output.")]
OnDevices = Annotated[Devices, arg(name="")]
"""Options of any command that computes with a model: the mesh, and how several processes find each other."""


@dataclass(frozen=True)
class Loading:
    """How a command loads a model, and where."""

    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    dtype: Dtype = "float32"
    """Of weights and computation."""
    devices: OnDevices = ALONE

    def model(self, checkpoint: Path, mesh: "Mesh | None") -> "Model":
        """`checkpoint` in memory. Raises as `load` does."""
        from a3jax.weights.loading import load

        return load(checkpoint, self.dtype, self.step, mesh)


Loads = Annotated[Loading, arg(name="")]
"""Options of any command that loads a model."""
PLAIN = Loading()


def check_shared(file: str | None) -> None:
    """Raise `UserError` for what not each of the processes that have joined can read."""
    if file == STDIN and not is_alone():
        raise UserError("standard input reaches one process, and there are several; give a file that all hosts see")


_places = ConstructorRegistry()


@_places.primitive_rule
def _place(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Every `Path` of a command line is a place: what `place` refuses never becomes one."""
    if kind.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: place(words[0]),
        is_instance=lambda value: isinstance(value, PurePath),
        str_from_instance=lambda path: [str(path)],
    )


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
                registry=_places,
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


def first(args: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """The first word of a command line, and the others. Without any, or for `--help`, prints `usage` and exits."""
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        sys.exit(0 if args else 2)
    return args[0], list(args[1:])


def subcommand(args: Sequence[str], known: Collection[str], prog: str, usage: str) -> tuple[str, list[str]]:
    """As `first`, but raises `UserError` for a word that is none of `known`."""
    name, others = first(args, usage)
    if name not in known:
        words = f"{prog} {name}".removeprefix("a3jax ")
        raise UserError(f"unknown command '{words}'{nearest(name, known)}; see {prog} --help")
    return name, others


def divide(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line: the options named, each with the words up to the next option, and everything else."""
    own: list[str] = []
    others: list[str] = []
    belongs = others
    for word in words:
        if word.startswith("--"):
            belongs = own if word.partition("=")[0] in options else others
        belongs.append(word)
    return own, others


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
        item = getattr(value, field.name, field.default)
        marks = getattr(field.type, "__metadata__", ())
        bare = tyro.conf.OmitArgPrefixes in marks or any(getattr(mark, "name", None) == "" for mark in marks)
        if dataclasses.is_dataclass(item):
            names += _names(item, item, prefix if bare else f"{name}.")
        elif isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
            names += [leaf for i, part in enumerate(item) for leaf in _names(part, part, f"{name}.{i}.")]
        else:
            names.append(name)
    return names
