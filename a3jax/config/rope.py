"""How a rotary embedding is stretched over more tokens than it was trained on: one dataclass a kind, `None` for none.

The numbers alone; what frequencies they make is `a3jax.model.rope`. Names follow the papers where `config.json` has none.
"""

from dataclasses import dataclass

from a3jax.errors import UserError, check_count, check_positive


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies are divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the context beyond `original_context` tokens (dynamic NTK), within which nothing changes."""

    factor: float
    original_context: int

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        check_count("original_context", self.original_context)


@dataclass(frozen=True)
class Llama3Scaling:
    """Long waves are slowed by `factor`, short ones stay, with a blend between (Llama 3.1); lengths in tokens.

    Raises `UserError` for a number that means nothing.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_positive(name, getattr(self, name))
        check_count("original_context", self.original_context)
        if not self.low_freq_factor < self.high_freq_factor:
            raise UserError(f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}")


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): waves that turn at least `beta_fast` times stay, those of `beta_slow` turns are slowed.

    `attention_factor` is what rotated queries and keys are multiplied with. `truncate` rounds the two edges to whole waves.
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
            check_positive(name, getattr(self, name))
        check_count("original_context", self.original_context)


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE (arXiv 2402.13753): every wave is divided by a number of its own, found by search.

    A model whose context is longer than `original_context` takes `long_factors`, another one `short_factors`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int
    attention_factor: float

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            for number in getattr(self, name):
                check_positive(name, number)
        check_positive("attention_factor", self.attention_factor)
        check_count("original_context", self.original_context)


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: its base, and how it is stretched."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_positive("theta", self.theta)
