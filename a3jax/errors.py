"""The one exception that stands for a user's mistake; the command line turns it into one line and exit status 2."""


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
