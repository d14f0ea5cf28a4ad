"""Orders against masks built token by token, and the statistics of their draws."""

import typing

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from a3jax.curriculum.stage import Family, Part, parse_order
from a3jax.errors import UserError
from a3jax.ordering import arrange, draw_given, draw_groups, draw_mixture, draw_order, example_keys, query_rule

L = 24
FAMILIES = typing.get_args(Family)
GROUP_SIZES = (1, 3, 4, 8)
ARRANGE = jax.jit(arrange, static_argnames="seeding")
DRAW_ORDER = jax.jit(draw_order, static_argnames=("family", "given", "seeding"))


@st.composite
def windows(pick):
    """Segment numbers of a window of L tokens: documents one after another, then padding."""
    cuts = sorted(pick(st.sets(st.integers(1, L - 1), max_size=5)))
    lengths = np.diff([0, *cuts, L])
    numbers = list(range(1, len(lengths) + 1))
    if len(lengths) > 1 and pick(st.booleans()):
        numbers[-1] = 0
    return np.repeat(numbers, lengths).astype(np.int32)


drawn = given(windows(), st.integers(0, 2**31 - 1), st.sampled_from(FAMILIES), st.sampled_from(GROUP_SIZES))


@settings(max_examples=150)
@given(windows(), st.lists(st.tuples(st.integers(-3, 9), st.booleans()), min_size=L, max_size=L))
def test_arrange_gives_the_ranges_of_the_brute_force_masks_for_any_groups(segments, groups_and_given):
    groups, is_given = map(np.array, zip(*groups_and_given, strict=True))
    order = jax.tree.map(
        np.asarray, jax.jit(arrange, static_argnums=3)(groups.astype(np.int32), is_given, segments, "learned")
    )
    check_order(order, groups, is_given, segments, "learned")


@settings(max_examples=150)
@drawn
def test_drawn_orders_are_permutations_with_the_ranges_of_the_brute_force_masks(draw, segments, seed, family, group_size):
    is_given, groups, order = draw(seed, segments, family, group_size)
    check_order(order, groups, is_given, segments, "successor")


def check_order(order, groups, is_given, segments, seeding):
    """Everything that an order says, against a loop over pairs of tokens."""
    token = order.token_index
    np.testing.assert_array_equal(np.sort(token), np.arange(L))
    content, query = brute_force.masks(groups, segments)
    to_the_slot, _ = brute_force.masks(groups, segments, "slot")
    start = brute_force.document_start(segments)
    for slot, t in enumerate(token):
        assert set(token[order.start[slot] : order.group_end[slot]]) == set(np.flatnonzero(content[t]))
        assert set(token[order.start[slot] : order.slot_end[slot]]) == set(np.flatnonzero(to_the_slot[t]))
        assert set(token[order.start[slot] : order.group_start[slot]]) == set(np.flatnonzero(query[t]))
        assert order.predicted[slot] == (segments[t] != 0 and not is_given[t])
        assert order.position[slot] == t - start[t]
        assert order.query_position[slot] == (t - start[t] if seeding == "learned" else max(t - start[t] - 1, 0))
        if segments[t]:
            before = t > 0 and segments[t - 1] == segments[t] and groups[t - 1] < groups[t]
            assert order.predecessor[slot] == (t - 1 if before else -1)
            behind = t + 1 < L and segments[t + 1] == segments[t] and groups[t + 1] < groups[t]
            assert order.successor[slot] == (t + 1 if behind else -1)
            assert order.causal[slot] == (t > start[t] and set(np.flatnonzero(query[t])) == set(range(start[t], t)))
        else:
            assert slot >= np.count_nonzero(segments), "padding comes last"
            assert order.group_end[slot] == order.slot_end[slot] == order.start[slot], "padding sees nothing"


@settings(max_examples=300)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from(["successor", "learned"]), st.sampled_from([np, jnp]))
def test_the_query_rule_is_that_of_the_set_of_tokens_seen(committed, seeding, arrays):
    place = np.flatnonzero(~np.array(committed, bool))
    seen = np.flatnonzero(committed)
    last = seen.max(initial=-1)
    facts = (
        place,
        np.full_like(place, len(seen)),
        np.full_like(place, last),
        np.isin(place - 1, seen),
        np.isin(place + 1, seen),
    )
    query = query_rule(*map(arrays.asarray, facts), seeding)
    for i, t in enumerate(place):
        assert query.position[i] == (t if seeding == "learned" or t == 0 else t - 1)
        assert query.known[i] == (t - 1 in set(seen))
        assert query.followed[i] == (t + 1 in set(seen))
        assert query.causal[i] == (t > 0 and set(seen) == set(range(t)))


@settings(max_examples=100)
@drawn
def test_groups_hold_at_most_the_group_size_and_given_tokens_are_first_and_alone(draw, segments, seed, family, group_size):
    is_given, groups, _ = draw(seed, segments, family, group_size)
    for number in set(segments[segments > 0]):
        here = np.flatnonzero(segments == number)
        assert is_given[here[0]], "the first token of a document is given"
        sizes = np.unique(groups[here], return_counts=True)[1]
        assert sizes.max() <= group_size
        known = groups[here][is_given[here]]
        assert len(set(known)) == len(known)
        assert (np.sort(known) == known).all(), "in their original order"
        if (~is_given[here]).any():
            assert known.max() < groups[here][~is_given[here]].min()


@settings(max_examples=60)
@drawn
def test_ranges_never_leave_the_document(draw, segments, seed, family, group_size):
    _, _, order = draw(seed, segments, family, group_size)
    sorted_segments = segments[order.token_index]
    for slot in range(L):
        assert (sorted_segments[order.start[slot] : order.group_end[slot]] == sorted_segments[slot]).all()
        assert order.predecessor[slot] < 0 or segments[order.predecessor[slot]] == sorted_segments[slot]


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_in_order_groups_are_contiguous_and_ascend(draw, group_size):
    segments = np.repeat([1, 2, 0], [13, 7, 4]).astype(np.int32)
    for seed in range(20):
        is_given, groups, order = draw(seed, segments, "in_order", group_size)
        for number in (1, 2):
            free = groups[(segments == number) & ~is_given]
            assert (np.diff(free) >= 0).all()
        is_given, groups, order = draw(seed, segments, "in_order", group_size, given=0.0)
        np.testing.assert_array_equal(order.token_index, np.arange(L))


@pytest.mark.parametrize("group_size", [3, 4, 8])
def test_spans_are_contiguous_stretches_in_random_order(draw, group_size):
    segments = np.repeat([1, 2], [17, 7]).astype(np.int32)
    firsts = set()
    for seed in range(30):
        _, groups, _ = draw(seed, segments, "spans", group_size, given=0.0)
        for number in (1, 2):
            free = np.flatnonzero(segments == number)[1:]
            expected = (np.arange(len(free))) // group_size
            changes = np.flatnonzero(np.diff(groups[free]) != 0)
            np.testing.assert_array_equal(changes, np.flatnonzero(np.diff(expected)))
            assert len(set(groups[free])) == expected[-1] + 1, "two spans never share a group"
        firsts.add(int(np.argmin(groups[1:17])) // group_size)
    assert firsts == set(range(-(-16 // group_size)))


def test_right_to_left_is_in_order_read_from_the_other_end(draw):
    segments = np.repeat([1, 2, 0], [13, 7, 4]).astype(np.int32)
    for seed in range(10):
        is_given, groups, _ = draw(seed, segments, "right_to_left", 3)
        for number in (1, 2):
            assert (np.diff(groups[(segments == number) & ~is_given]) <= 0).all()
    _, groups, order = draw(0, segments, "right_to_left", 1, given=0.0)
    np.testing.assert_array_equal(order.token_index[:20], [0, *range(12, 0, -1), 13, *range(19, 13, -1)])


@pytest.mark.parametrize("family", ["in_order", "random", "spans", "right_to_left"])
def test_geometric_sizes_are_those_of_independent_groups(draw, family):
    """Every group ends with odds of 1/S after each token, so P(n) = (1 - 1/S)^(n - 1) / S where no end cuts it."""
    mean, length, sizes = 3, 400, []
    for seed in range(60):
        _, groups, _ = draw(seed, np.ones(length, np.int32), family, mean, given=0.0, sizes="geometric")
        names, counts = np.unique(groups[1:], return_counts=True)
        whole = ~np.isin(names, [groups[1], groups[-1], names[0], names[-1]])
        sizes += counts[whole].tolist()
    observed = np.bincount(np.minimum(sizes, 10), minlength=11)[1:]
    odds = (1 - 1 / mean) ** np.arange(10)
    expected = len(sizes) * np.append(odds[:9] / mean, odds[9])
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_uniform_sizes_are_one_size_a_window_and_each_as_likely(draw):
    segments, count = np.ones(41, np.int32), np.zeros(5)
    for seed in range(400):
        _, groups, _ = draw(seed, segments, "random", 4, given=0.0, sizes="uniform")
        sizes = np.unique(groups[1:], return_counts=True)[1]
        assert (sizes[1:-1] == sizes.max()).all(), "only the first and the last are cut"
        count[sizes.max()] += 1
    assert stats.chisquare(count[1:]).pvalue > 1e-4


def test_a_prefix_is_the_beginning_of_each_document_and_never_all_of_it(draw):
    segments, shares = np.repeat([1, 2, 3, 0], [14, 6, 1, 3]).astype(np.int32), []
    for seed in range(200):
        is_given, _, _ = draw(seed, segments, "random", 2, given=0.0, prefix=0.9)
        for number in (1, 2, 3):
            here = is_given[segments == number]
            assert (np.diff(here.astype(int)) <= 0).all(), "given first, then not"
            assert here[0]
            assert not here[-1] or len(here) == 1
        shares.append((is_given[:14].sum() - 1) / 13)
    assert max(shares) > 0.8
    assert np.mean(shares) == pytest.approx(0.45 - 0.5 / 13, abs=0.06)  # uniform up to 0.9, rounded down; 3 standard errors


MIXTURE = (Part(1.0, "in_order", 1), Part(2.0, "right_to_left", 2), Part(0.0, "random", 3), Part(5.0, "spans", 4))


def kinds(order):
    """Which part of the mixture drew each window, by the sizes and the order of its groups."""
    sizes = np.asarray(order.group_end - order.group_start).max(axis=1)
    assert set(sizes) <= {1, 2, 4}
    return np.searchsorted([1, 2, 4], sizes)


def test_mixtures_reproduce_their_probabilities_and_each_part_draws_what_it_draws_alone():
    count = 2000
    keys, segments = example_keys(3, 0, count), np.ones((count, L), np.int32)
    draw_mixed = jax.jit(lambda *arguments: draw_mixture(*arguments), static_argnums=(2, 3))  # with a cache of its own
    for weights in ([1, 2, 0, 5], [3, 1, 0, 4]):
        mixed = draw_mixed(keys, segments, MIXTURE, "successor", np.tile(np.float32(weights), (count, 1)))
        chosen, expected = kinds(mixed), np.delete(weights, 2)
        assert stats.chisquare(np.bincount(chosen), count * expected / expected.sum()).pvalue > 1e-4
    assert draw_mixed._cache_size() == 1, "weights may change from step to step"
    for kind, part in [(0, MIXTURE[0]), (1, MIXTURE[1])]:
        alone = DRAW_ORDER(keys, segments, part.family, part.group_size, 0.0, "successor")
        for one, other in zip(mixed, alone):
            np.testing.assert_array_equal(one[chosen == kind], other[chosen == kind])


def test_spans_of_long_windows_never_fall_together():
    length, group_size = 2048, 4
    draw_many = jax.jit(jax.vmap(lambda k: draw_groups(k, np.ones(length), np.arange(length) == 0, "spans", group_size)))
    groups = np.asarray(draw_many(jax.random.split(jax.random.key(0), 400)))
    assert all(np.unique(row, return_counts=True)[1].max() == group_size for row in groups)


@settings(max_examples=80)
@given(windows(), st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.5]))
def test_infilling_blanks_one_stretch_of_every_document(draw, segments, seed, share):
    is_given, _, _ = draw(seed, segments, "infill", 4, given=share)
    for number in set(segments[segments > 0]):
        here = np.flatnonzero(segments == number)
        blank = np.flatnonzero(~is_given[here])
        assert len(blank) == 0 if len(here) == 1 else 1 <= len(blank) <= max(1, np.ceil((1 - share) * (len(here) - 1)))
        assert (np.diff(blank) == 1).all()


def test_infilling_reaches_every_stretch(draw):
    segments = np.repeat([1, 0], [9, 15]).astype(np.int32)
    blanks = {tuple(np.flatnonzero(~draw(seed, segments, "infill", 4, given=0.0)[0][:9])) for seed in range(800)}
    assert blanks == {tuple(range(first, end)) for first in range(1, 9) for end in range(first + 1, 10)}


def test_at_most_the_given_fraction_is_given():
    segments = np.ones(2048, np.int32)
    fractions = np.asarray(
        jax.vmap(lambda k: draw_given(k, segments, segments < 0, "random", 0.4).mean())(example_keys(0, 0, 300))
    )
    assert fractions.max() < 0.4 + 0.04  # a binomial share of 2048: standard deviation 0.011
    assert abs(fractions.mean() - 0.2) < 0.03  # uniform on [0, 0.4]: standard deviation of the mean 0.007
    assert fractions.min() < 0.02


def test_the_same_seed_step_and_example_give_the_same_order_and_others_give_others():
    segments = np.ones((6, L), np.int32)

    def tokens(seed, step, batch=6):
        keys = example_keys(seed, step, batch)
        order = DRAW_ORDER(keys, segments[:batch], "random", 4, 0.0, "successor")
        return [tuple(row) for row in np.asarray(order.token_index).tolist()]

    assert tokens(0, 3) == tokens(0, 3)
    assert tokens(0, 3, batch=2) == tokens(0, 3)[:2], "an example's order does not depend on the batch's size"
    different = tokens(0, 3) + tokens(0, 4) + tokens(1, 3)
    assert len(set(different)) == 18


def test_random_orders_are_uniform():
    draws, free = 4000, 5
    segments = np.broadcast_to(np.repeat([1, 0], [free + 1, 2]), (draws, free + 3))
    order = DRAW_ORDER(jax.random.split(jax.random.key(7), draws), segments, "random", 1, 0.0, "learned")
    permutations, counts = np.unique(np.asarray(order.token_index)[:, : free + 1], axis=0, return_counts=True)
    assert len(permutations) == 120
    chi_square = ((counts - draws / 120) ** 2 / (draws / 120)).sum()
    assert 60 < chi_square < 190  # 119 degrees of freedom: mean 119, standard deviation 15.4


@pytest.mark.parametrize("family", ["in_order", "random", "spans"])
def test_one_document_per_window_has_the_same_ranges_in_every_draw(draw, family):
    """`in_order` and `random` are static masks, and equal ones; a short last span may come anywhere."""
    segments = np.ones(L + (family == "spans"), np.int32)
    orders = [draw(seed, segments, family, 4, given=0.0)[2] for seed in range(10)]
    for order in orders[1:]:
        for name in ("start", "group_start", "group_end"):
            np.testing.assert_array_equal(getattr(order, name), getattr(orders[0], name))
    if family != "spans":
        edges = np.maximum(1, np.arange(L) // 4 * 4)
        np.testing.assert_array_equal(orders[0].group_start, np.where(np.arange(L) == 0, 0, edges))


def test_names_of_orders():
    assert parse_order("ar") == ("in_order", 1)
    assert parse_order("in_order_4") == ("in_order", 4)
    assert parse_order("random_16") == ("random", 16)
    assert parse_order("right_to_left") == parse_order("right_to_left_1") == ("right_to_left", 1)
    for wrong in ("random", "random_0", "random_-1", "sideways_4", "random_x", ""):
        with pytest.raises(UserError, match="orders are ar, in_order_N, random_N"):
            parse_order(wrong)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group_size", [1, 4])
def test_tokens_of_a_negative_segment_are_context_read_before_all_others_and_never_predicted(family, group_size):
    segments = np.array([[-1] * 5 + [1] * 9 + [2] * 6 + [0] * 4], np.int32)
    order = DRAW_ORDER(example_keys(0, 0, 1), segments, family, group_size, given=0.0, seeding="successor")
    np.testing.assert_array_equal(order.token_index[0, :5], np.arange(5))
    predicted = np.zeros(L, bool)
    predicted[np.asarray(order.token_index[0])] = np.asarray(order.predicted[0])
    assert not predicted[:5].any()
    assert not predicted[14], "the first token of the second document is given"
    assert not predicted[20:].any()
    if family not in ("infill", "open"):
        assert predicted[5:14].all()
    np.testing.assert_array_equal(order.start[0, :14], 0)
