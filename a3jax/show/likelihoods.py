"""A scored text as a table of its tokens."""

import math

from rich.table import Table
from rich.text import Text

from a3jax.generate.scored import Scored
from a3jax.show.watch import colour
from a3jax.terminal import Terminal


def print_tokens(scored: Scored) -> None:
    """A table of tokens on standard output."""
    table = Table("token", "text", "nats", "probability", box=None, header_style="bold")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for token in scored.tokens():
        probability = math.exp(token["log_prob"])
        name, nats = Text(repr(token["text"])), f"{token['log_prob']:.3f}"
        table.add_row(str(token["id"]), name, nats, Text(f"{probability:.4f}", colour(probability)))
    Terminal().print(table)
