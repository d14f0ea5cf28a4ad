"""What people read in a terminal: text from outside, in which nothing is left that a terminal would obey.

Names of files, fields of records and answers of models can hold escape sequences, which move the cursor, rewrite what
stands above or type for the user, and marks that turn the direction of writing, so that a line reads otherwise than it is.
All that is shown goes through here: lines through `show` and `say`, tables and bars through `a3jax.terminal`. Data that
another program reads, JSON and the texts of `a3jax generate` behind a pipe, does not.
"""

import sys

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Of Unicode's property Bidi_Control."""
_SIGNS = {number: 0x2400 + number for number in range(32) if chr(number) not in "\t\n"}
_SIGNS |= {0x7F: 0x2421} | dict.fromkeys([*range(0x80, 0xA0), 0x2028, 0x2029, *_BIDI], 0xFFFD)


def printable(text: str) -> str:
    """`text` with signs for what a terminal would obey and what turns the direction of writing; line ends and tabs stay."""
    return text.translate(_SIGNS)


def one_line(text: str) -> str:
    """The same on one line, with signs for line ends and tabs too."""
    return printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def show(text: str) -> None:
    """Print lines for people on standard output."""
    print(printable(text))


def say(message: str) -> None:
    """Print a line of the command's own on standard error, whatever is named in it."""
    print(f"a3jax: {one_line(message)}", file=sys.stderr, flush=True)
