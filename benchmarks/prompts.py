"""What benchmarks write behind: pieces of source files, and the options that say which."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import a3jax
from a3jax.errors import UserError


def own_sources(count: int) -> list[Path]:
    """The largest files of a3jax itself, the smallest of them first."""
    return sorted(Path(a3jax.__file__).parent.rglob("*.py"), key=lambda file: file.stat().st_size)[-count:]


@dataclass(frozen=True)
class Prompts:
    """A checkpoint, and the prompts behind which it writes."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    source: list[Path] = field(default_factory=lambda: own_sources(4))
    """Text files; a prompt is taken from the middle of each. Without any, the largest files of a3jax itself."""
    prompt: int = 64
    """Tokens of a prompt."""
    new: int = 128
    """Tokens written behind it."""


def pieces(model: a3jax.Model, sources: list[Path], tokens: int) -> list[str]:
    """So many tokens from the middle of each file, as text."""
    found = []
    for path in sources:
        ids = model.codec.encode(path.read_text())
        if len(ids) < tokens:
            raise UserError(f"{path} has {len(ids)} tokens; a prompt needs {tokens}")
        begin = (len(ids) - tokens) // 2
        found.append(model.codec.decode(ids[begin : begin + tokens]))
    return found
