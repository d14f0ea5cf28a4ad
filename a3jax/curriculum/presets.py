"""Curricula that have a name: ours, and the paper's."""

from a3jax.curriculum.stage import Part, Stage


def paper(steps: int, given: float = 0.0) -> tuple[Stage, ...]:
    """The five stages of arXiv 2601.13228 over `steps` steps, all of equal length but for the last, which takes the rest.

    The authors' script trains each of them for 800 steps of 128 sequences (docs/curriculum.md tells what is known).
    """
    fifth = max(1, steps // 5)
    return (
        Stage(fifth, "in_order", 1),
        Stage(fifth, "in_order", 2),
        Stage(fifth, "in_order", 4),
        Stage(fifth, "random", 4, given),
        Stage(max(1, steps - 4 * fifth), "random", 8, given),
    )


def half_random(steps: int, group_size: int = 8) -> tuple[Stage, ...]:
    """Strategy 5 of the authors' script: half of the windows in random groups, half in groups from left to right."""
    return (Stage(steps, mixture=(Part(0.5, "random", group_size), Part(0.5, "in_order", group_size))),)


def direct(steps: int, group_size: int = 4) -> tuple[Stage, ...]:
    """Our default (docs/study.md): random groups from the first step. With adapters nothing is forgotten meanwhile."""
    return (Stage(steps, "random", group_size),)


def mixed(steps: int, group_size: int = 4, ar_share: float = 0.25) -> tuple[Stage, ...]:
    """The best where all weights are trained (docs/study.md): random groups, and plain autoregression beside them."""
    return (Stage(steps, mixture=(Part(1 - ar_share, "random", group_size), Part(ar_share))),)
