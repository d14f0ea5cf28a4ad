"""Failures that may pass by themselves: of a network, a bucket, another host, or a device that did not start. They are no
mistake of the user and no defect, and the same command is worth another start; how many, says `a3jax.train.tries`."""

import re

from a3jax.errors import UserError
from a3jax.files.folders import is_passing

TRY_AGAIN = 75
"""Exit status of a process that failed so, or whose run lost another one (EX_TEMPFAIL)."""

_CODES = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DATA_LOSS")
"""Of XLA and the coordination service, at the beginning of a message. A value that is wrong is INVALID_ARGUMENT, and too
little memory RESOURCE_EXHAUSTED: both come again every time."""
_RUNTIME = re.compile(rf"({'|'.join(_CODES)})\b|Unable to initialize backend '(tpu|cuda|rocm)'")


class Passing(UserError):
    """A failure that may pass, in words; where it is the user's turn at all, then to run the same command again."""

    status = TRY_AGAIN


def may_pass(error: BaseException) -> bool:
    """Whether an error is `Passing`, or the word of the runtime or a file system for what is.

    Gloo, which connects processes on the CPU, raises `ValueError` for a peer that is gone. Of other libraries, such as
    TensorStore, a `ValueError` that begins with DATA_LOSS is about a damaged file, which does not pass.
    """
    if isinstance(error, RuntimeError) and _RUNTIME.match(str(error)):
        return True
    if isinstance(error, OSError) and is_passing(error):
        return True
    return isinstance(error, Passing) or (isinstance(error, RuntimeError | ValueError) and "Gloo" in str(error))


def needs_memory(error: BaseException) -> bool:
    """Whether a device or its host has too little memory for what was asked."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED"))
