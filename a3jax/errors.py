"""The one exception that stands for a user's mistake, which the command line turns into one line and exit status 2.

Beside it, checks of single values that raise it.
"""

import operator
from typing import Any

_LARGEST_COUNT = 2**31 - 1
"""Token ids and positions are int32."""
_SMALLEST, _LARGEST = 1e-38, 3e38
"""Of the normal numbers of float32, in which models compute."""


class UserError(Exception):
    """Bad input: the message names the file, field or value, and says what to do."""

    status = 2
    """Exit status of the command."""


def first_line(error: BaseException) -> str:
    """What a library's exception says at its root, for use inside a `UserError`: one line, not too long, never empty."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_list(name: str, value: object) -> None:
    """Raises `UserError` for a text where several are asked for, as Python would take its letters one by one."""
    if isinstance(value, str):
        raise UserError(f"{name} is a text; give a list of them")


def check_count(name: str, value: Any) -> int:
    """The value, a whole number from 1 on that fits into int32. Raises `UserError`, beginning with `name`, for all else."""
    if 0 < (number := _whole(value)) <= _LARGEST_COUNT:
        return number
    raise UserError(f"{name} is {shown(value)}; it must be a whole number from 1 to {_LARGEST_COUNT}")


def check_positive(name: str, value: Any) -> float:
    """The value, a number above 0 that float32 can hold. Raises `UserError`, beginning with `name`, for all else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and _SMALLEST < value < _LARGEST:  # NaN is not
        return float(value)
    raise UserError(f"{name} is {shown(value)}; it must be a positive number, and finite in float32")


def check_token(name: str, value: Any, vocab: int) -> int:
    """The value, the id of one of `vocab` tokens. Raises `UserError`, beginning with `name`, for all else."""
    if 0 <= (number := _whole(value)) < vocab:
        return number
    raise UserError(f"{name} is {shown(value)}; it must be the id of a token, from 0 to {vocab - 1}")


def _whole(value: Any) -> int:
    """A whole number as Python's or NumPy's, -1 for all else: for a truth value too."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and its beginning only where it is long."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a whole number of too many digits, or lists in lists without end
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
