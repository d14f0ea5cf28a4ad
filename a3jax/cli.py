"""The `a3jax` command: finds the subcommand, runs it, and says what came of it."""

import importlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from a3jax.commands.commandline import parse, subcommand
from a3jax.commands.curriculum import Curriculum
from a3jax.commands.data import Data
from a3jax.commands.evaluate import Evaluate
from a3jax.commands.export import Export
from a3jax.commands.generate import Generate
from a3jax.commands.import_weights import Import
from a3jax.commands.inspect import Inspect
from a3jax.commands.plan import Plan
from a3jax.commands.prepare import Prepare
from a3jax.commands.score import Score
from a3jax.commands.serve import Serve
from a3jax.commands.sweep import Sweep
from a3jax.commands.train import Train
from a3jax.devices.interrupt import stop_requests
from a3jax.devices.passing import Passing, may_pass, needs_memory
from a3jax.devices.processes import Processes, continue_in_child, failing, is_another, leave, several
from a3jax.errors import UserError, first_line
from a3jax.files.folders import is_forbidden, is_full_disk, is_wrong_path
from a3jax.outside_text import one_line, say

COMMANDS: dict[str, tuple[type, str, str]] = {
    "import": (Import, "a3jax.weights.importer", "pretrained weights -> a model folder"),
    "inspect": (Inspect, "a3jax.show.describe", "what a model, run, export or corpus is"),
    "prepare": (Prepare, "a3jax.data.prepare", "text -> a corpus of token ids"),
    "data": (Data, "a3jax.data.pipeline", "look at an experiment's batches, or measure how fast they come"),
    "curriculum": (Curriculum, "a3jax.show.schedule", "look at an experiment's curriculum, as a picture and by examples"),
    "train": (Train, "a3jax.train.loop", "adapt a model along a curriculum"),
    "sweep": (Sweep, "a3jax.sweep.trials", "many runs of an experiment: run them, look after them, compare them"),
    "plan": (Plan, "a3jax.plan.stages", "whether a run fits a TPU topology, and how fast it can be"),
    "generate": (Generate, "a3jax.generate.infill", "fill the blanks of a text in any order"),
    "score": (Score, "a3jax.generate.scored", "the exact likelihood of texts, in any order"),
    "evaluate": (Evaluate, "a3jax.evaluate.evaluation", "measure a model: likelihood, infilling, questions"),
    "serve": (Serve, "a3jax.serve.server", "complete and fill texts over HTTP"),
    "export": (Export, "a3jax.export.exporter", "a checkpoint -> Hugging Face and PyTorch, GGUF, or adapters"),
}
"""Name -> options, the module that does the work, and what it is for."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command line. A user's mistake is one line on standard error and exit status 2."""
    args = list(sys.argv[1:] if args is None else args)
    for name in ("absl", "asyncio"):  # Orbax warns of what is as it should be, and tells every failure at length
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks is shown by its number
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by exception, so that folders are tidied
    try:
        if args[:1] == ["--version"]:
            print(f"a3jax {importlib.metadata.version('a3jax')}")
            sys.exit(0)
        name, words = subcommand(args, COMMANDS, "a3jax", _help())
        kind, module, _ = COMMANDS[name]
        prog = f"a3jax {name}"
        command = kind.parse(words, prog) if hasattr(kind, "parse") else parse(kind, words, prog)
        if (processes := _processes(command)) is not None and several(processes):
            continue_in_child()
        if isinstance(command, Import | Prepare) and is_another():
            say(f"{prog} works in one process: the first does it, and this one, which is another, does nothing")
            sys.exit(0)
        if "jax" not in sys.modules and (beginning := getattr(command, "beginning", None)) and not is_another():
            say(beginning)  # importing JAX takes seconds
        with stop_requests() as stopped_by:  # libraries that are being imported can swallow an interrupt
            importlib.import_module(module)
            if "jax" in sys.modules:  # commands that compile nothing do not wait for it
                importlib.import_module("a3jax.devices.compilation").keep_compiled_programs()
        if stopped_by():
            sys.exit(128 + stopped_by())
        result = command.run()
    except UserError as error:
        _end_with(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _stop_writing()
        sys.exit(0)
    except Exception as error:
        if is_full_disk(error):
            _end_on_full_disk()
        if (known := _in_words(error)) is not None:
            _end_with(known)
        failing(1)
        raise
    options: Any = getattr(command, "options", command)  # those that take an experiment keep theirs apart
    try:
        if options.json and result:
            print(json.dumps(result))
        else:
            _show(result)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it, such as `head`, has seen enough
        _stop_writing()
    except OSError as error:
        if not is_full_disk(error):
            raise
        _end_on_full_disk()
    status = 128 + result["stopped_by"] if result.get("stopped_by") else 0
    compiling = any(thread.name.startswith(("compile", "model")) for thread in threading.enumerate())
    if compiling and (status or isinstance(command, Serve)):  # stopped, and nobody waits for it any more
        sys.stdout.flush()
        leave()
        os._exit(status)
    if status or False in (result.get("fits"), result.get("complete")):
        sys.exit(status or 1)


def _processes(command: Any) -> Processes | None:
    """How a command that several processes run together finds the others; None for one that each runs for itself."""
    if isinstance(command, Train):
        return command.options
    return getattr(getattr(command, "loading", command), "devices", None)


def _end_with(error: UserError) -> NoReturn:
    """One line; where something was tried again until it was given up, what it was in full before that."""
    if error.status == 1 and error.__cause__ is not None:
        traceback.print_exception(error.__cause__)
    say(str(error))
    status = failing(error.status)
    if status != UserError.status:  # threads of libraries try for a quarter of an hour what was given up here
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _in_words(error: Exception) -> UserError | None:
    """What any command can run into, and what to do; None for anything else, which is a defect."""
    if may_pass(error):
        what = first_line(error)
        if isinstance(error, OSError) and error.filename is not None:
            what = f"{error.filename}: {error.strerror}"
        return Passing(f"{what}; this may pass: run the same command again")
    if needs_memory(error):
        return UserError(
            f"there is too little memory ({first_line(error)}); take a smaller batch, or see with a3jax plan what a run needs"
        )
    if isinstance(error, OSError) and error.filename is not None and is_wrong_path(error):
        mend = "have it given to you, or choose another path" if is_forbidden(error) else "choose another path"
        return UserError(f"{error.filename}: {error.strerror}; {mend}")
    return None


def _end_on_full_disk() -> NoReturn:
    """Where no one has said it better: as for what goes to standard output."""
    _stop_writing()
    say("the disk is full; make room and run the same command again")
    sys.exit(failing(2))


def _stop_writing() -> None:
    """What is still to be written, to a pipe that nobody reads or a full disk, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """Pass over the echoes of a failed write: TensorStore's threads report to an event loop that is gone by then."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _help() -> str:
    rows = "\n".join(f"  {name:12}{what}" for name, (*_, what) in COMMANDS.items())
    return f"usage: a3jax COMMAND ...\n\n{rows}\n\nHelp and an example:  a3jax COMMAND --help   Version:  a3jax --version"


def _show(result: dict[str, Any]) -> None:
    """Results for people: a name and a value a line, long lists left to `--json`."""
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(item)}" for key, item in value.items() if not isinstance(item, list | tuple))
        if value and not isinstance(value, list | tuple):
            print(_wrapped(one_line(f"{name.replace('_', ' '):22} {_number(value)}")))


def _wrapped(line: str) -> str:
    """On a terminal, cut at words where it is wider than that, and set in under its value."""
    if not sys.stdout.isatty():
        return line
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent=" " * 23, drop_whitespace=True, break_on_hyphens=False)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    main()
