"""a3jax generate."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commandline import Json


@dataclass(frozen=True)
class Generate:
    """Fill the blanks of a text, in any order.

    a3jax generate runs/demo --text "def area(r): [[8]] * r"
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    text: str
    """A text in which [[n]] is a blank of n tokens."""
    order: str = "ar"
    """ar, in_order_N, random_N or spans_N, with N tokens decoded at a time."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have probability p."""
    seed: int = 0
    """Decides orders and samples."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        import a3jax

        model = a3jax.load(self.checkpoint, dtype=self.dtype, step=self.step)
        options = ("order", "temperature", "top_k", "top_p", "seed")
        result = a3jax.infill(model, self.text, **{name: getattr(self, name) for name in options})
        blanks = [dataclasses.asdict(blank) for blank in result.blanks]
        facts = {"blanks": blanks, "forwards": result.forwards, "seconds": result.seconds}
        if self.json:
            return {"text": result.text, **facts}
        _print_marked(result.pieces)
        return facts | {"log_prob": result.log_prob}


def _print_marked(pieces: Sequence[tuple[str, bool]]) -> None:
    """A text with what was filled in standing out: in colour on a terminal, between ⟦ and ⟧ elsewhere."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout.isatty():
        marked = Text.assemble(*((text, "bold green" if filled else "") for text, filled in pieces))
        Console(soft_wrap=True, highlight=False).print(marked)
    else:
        print("".join(f"⟦{text}⟧" if filled else text for text, filled in pieces))
