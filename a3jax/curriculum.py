"""Step -> stage. Pure: stages come from the configuration, nothing is remembered.

The curriculum of arXiv 2601.13228 moves a model from plain autoregression to any order in five stages; `paper` gives it.
"""

from collections.abc import Sequence

from a3jax.config import Stage


def stage_at(stages: Sequence[Stage], step: int) -> tuple[int, Stage]:
    """The index and the stage that train `step` (0-based). A stage of n steps owns exactly n of them.

    Raises IndexError at or after the end of the curriculum.
    """
    end = 0
    for index, stage in enumerate(stages):
        end += stage.steps
        if step < end:
            return index, stage
    raise IndexError(f"step {step} is past the end of a curriculum of {end} steps")


def paper(steps: int, given: float = 0.0) -> tuple[Stage, ...]:
    """The paper's five stages over `steps` steps, the first four of equal length and the last taking the rest."""
    quarter = max(1, steps // 6)
    return (
        Stage(quarter, "in_order", 1),
        Stage(quarter, "in_order", 2),
        Stage(quarter, "in_order", 4),
        Stage(quarter, "random", 4, given),
        Stage(max(1, steps - 4 * quarter), "random", 8, given),
    )
