"""(seed, step, example) -> the order of a window: which part of a stage it draws, what is given, groups, then slots."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from a3jax.config import Seeding
from a3jax.curriculum.stage import Family, Part
from a3jax.ordering.arrange import Order, arrange
from a3jax.ordering.families import draw_given, draw_groups, draw_layout
from a3jax.ordering.layout import Layout
from a3jax.ordering.windows import turns


@functools.partial(jax.jit, static_argnames="batch")
def example_keys(seed: int | Array, step: int | Array, batch: int) -> Array:
    """One random key per example, a pure function of (seed, step, example index)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda example: jax.random.fold_in(key, example))(jnp.arange(batch))


def draw_order(
    keys_B: Array, segment_BxL: Array, family: Family, group_size: int | Array, given: float, seeding: Seeding
) -> Order:
    """The orders of a batch of windows, all of one kind and one group size; one key each."""
    size_Bx1 = jnp.broadcast_to(group_size, (*keys_B.shape, 1))
    return draw_mixture(keys_B, segment_BxL, (Part(family=family, given=given),), seeding, size_BxP=size_Bx1)


@functools.partial(jax.jit, static_argnames=("parts", "seeding"))
def draw_mixture(
    keys_B: Array,
    segment_BxL: Array,
    parts: tuple[Part, ...],
    seeding: Seeding,
    weight_BxP: Array | None = None,
    size_BxP: Array | None = None,
) -> Order:
    """The orders of a batch of windows with one key each: `draw_given`, `draw_groups`, then `arrange`.

    Each window draws one of P parts. Their weights and group sizes are those of the window in `weight_BxP` and `size_BxP`,
    or else their own. A token whose segment is written as a negative number is given: a prompt's, or context that another
    window predicts. Each run of such tokens begins a turn, which is drawn for as if it were a document, and comes after the
    turns before it, which it sees.
    """

    def one(key: Array, segment_L: Array, weight_P: Array | None, size_P: Array | None) -> Order:
        context_L, segment_L = segment_L < 0, jnp.abs(segment_L)
        turn_L = turns(segment_L, context_L)
        blanks_end = any(part.blanks_end for part in parts)
        drawn = []
        for number, part in enumerate(parts):
            size = part.group_size if size_P is None else size_P[number]
            layout = _draw_layout(key, segment_L, part) if blanks_end else None
            drawn.append((*draw_part(key, turn_L, context_L, part, size), layout))
        given_L, group_L, layout = drawn[0]
        if len(parts) > 1:
            weight_P = jnp.array([part.weight for part in parts]) if weight_P is None else weight_P
            chosen = jax.random.categorical(jax.random.fold_in(key, 2), jnp.log(weight_P))
            given_L, group_L, layout = jax.tree.map(lambda *each: jnp.stack(each)[chosen], *drawn)
        return arrange(group_L, given_L, segment_L, seeding, groups=2 * segment_L.shape[0], layout=layout, turn_L=turn_L)

    return jax.vmap(one)(keys_B, segment_BxL, weight_BxP, size_BxP)


def draw_part(key: Array, segment_L: Array, context_L: Array, part: Part, group_size: int | Array) -> tuple[Array, Array]:
    """`draw_given` and `draw_groups` of one window, as a part of a mixture says; `context_L` is given too."""
    given_key, group_key = jax.random.split(key)
    size_key = jax.random.fold_in(key, 3)  # 0 and 1 are those of split(), 2 chooses the part
    break_L = None
    if part.sizes == "uniform":
        group_size = jax.random.randint(size_key, (), 1, group_size + 1)
    elif part.sizes == "geometric":  # a group ends with the same odds after each of its tokens
        break_L = jax.random.bernoulli(size_key, 1 / group_size, segment_L.shape)
    given_L = draw_given(given_key, segment_L, context_L, part.family, part.given, part.prefix)
    return given_L, draw_groups(group_key, segment_L, given_L, part.family, group_size, break_L)


def _draw_layout(key: Array, segment_L: Array, part: Part) -> Layout:
    """Where tokens stand in the window of which `draw_part` draws groups with the same key."""
    given_key, _ = jax.random.split(key)
    return draw_layout(given_key, segment_L, part.family, part.given, part.slack)
