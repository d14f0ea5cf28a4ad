"""What happened to a set of weights so far; it travels with them through training, export and re-import."""

from dataclasses import dataclass, field
from typing import Any

from a3jax.config import Objective


@dataclass(frozen=True)
class Provenance:
    """Facts for model cards and `a3jax inspect`."""

    source: str
    """Name of the file or folder the weights were imported from, or "random"."""
    dtype: str = "float32"
    """Of the source's matrices."""
    dequantized: bool = False
    stored: str = ""
    """What they were quantized as, such as "GPTQ, 4 bits", where that is known."""
    steps: int = 0
    tokens: int = 0
    """Tokens of documents that were trained on, given ones included and those of every epoch again; neither padding nor
    what was read again as context (`tokens` of `a3jax.train.counts.Counts`, summed)."""
    stages: tuple[str, ...] = ()
    """Curriculum stages trained, oldest first, or objectives that have none; the last may be unfinished."""
    objective: Objective = "a3"
    """What they were last trained for, which tells how they predict."""
    mask_block: int | None = None
    """Of masked diffusion, tokens of a block, 0 where it has none; None for other objectives."""
    fim_tokens: tuple[int, ...] = ()
    """Of objective fim, the tokens before prefix, suffix and middle."""
    blanks_end: bool = False
    """Whether they were trained on blanks of unknown length, which end with the model's end token."""
    trained_with: tuple[str, ...] = ()
    """Versions and devices of each start that went on from the one before with others, oldest first."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Sampling defaults and the padding token, as the source's `generation_config.json` has them; exports have them too."""

    @property
    def origin(self) -> str:
        """The dtype of the source's matrices, and what it was made of."""
        of = f" from {self.stored}" if self.stored else ""
        return f"dequantized{of} to {self.dtype}" if self.dequantized else self.dtype
