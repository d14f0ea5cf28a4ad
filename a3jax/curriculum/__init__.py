"""Step -> which orders are drawn: stages, the schedule made of them, presets, plateaus. Pure functions."""

from a3jax.curriculum.presets import direct, half_random, mixed, paper
from a3jax.curriculum.stage import Part, Plateau, Stage

__all__ = ["Part", "Plateau", "Stage", "direct", "half_random", "mixed", "paper"]
