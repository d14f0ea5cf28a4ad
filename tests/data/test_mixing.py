"""Shares and epochs: who is owed a row gets it, and a source is gone through whole before it begins again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.config import SourceConfig, WeightAt
from a3jax.data.mixing import Mixture, rows, weights
from a3jax.errors import UserError


def sources(*values):
    return [SourceConfig(str(i), weight) for i, weight in enumerate(values)]


@settings(max_examples=60)
@given(
    share=st.lists(st.lists(st.integers(0, 10), min_size=4, max_size=4).filter(any), min_size=1, max_size=40),
    batch=st.integers(1, 9),
)
def test_every_step_is_filled_and_no_source_strays_from_what_it_is_owed(share, batch):
    share_SxK = np.array(share) / np.sum(share, axis=1, keepdims=True)
    given_SxK = rows(share_SxK, batch)
    np.testing.assert_array_equal(np.diff(given_SxK.sum(1)), batch)
    assert (np.diff(given_SxK, axis=0) >= 0).all()
    owed_SxK = np.cumsum(share_SxK, axis=0) * batch
    assert np.abs(given_SxK[1:] - owed_SxK).max() < 3  # fewer rows than there are sources besides it


def test_steps_after_the_last_are_as_that_one():
    """As those of a plan with more steps, whose weights stay."""
    scheduled = [SourceConfig("a", schedule=(WeightAt(0, 1.0), WeightAt(19, 3.0))), SourceConfig("b", 1.0)]
    planned, longer = (Mixture(scheduled, [64, 30], steps, 8, seed=2) for steps in (20, 70))
    for step in (3, 19, 20, 33, 69, 41):
        for x, y in zip(planned.at(step, np.arange(8)), longer.at(step, np.arange(8)), strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(planned.epochs(70), longer.epochs(70))


def test_constant_weights_are_met_to_a_row():
    given_SxK = rows(weights(sources(1, 2, 5), 1000), 8)
    np.testing.assert_array_equal(given_SxK[1000], [1000, 2000, 5000])
    assert np.abs(given_SxK - np.arange(1001)[:, None] * np.array([1, 2, 5])).max() <= 1


def test_a_schedule_is_linear_between_its_points_and_constant_outside_them():
    scheduled = SourceConfig("a", schedule=(WeightAt(2, 1.0), WeightAt(6, 3.0)))
    found = weights([scheduled, SourceConfig("b", 1.0)], 9)[:, 0]
    expected = np.array([1, 1, 1, 1.5, 2, 2.5, 3, 3, 3])
    np.testing.assert_allclose(found, expected / (expected + 1), rtol=1e-12)


def test_a_source_can_begin_late_and_a_step_without_any_is_an_error():
    late = SourceConfig("a", schedule=(WeightAt(4, 0.0), WeightAt(5, 1.0)))
    early = SourceConfig("b", schedule=(WeightAt(4, 1.0), WeightAt(5, 0.0)))
    np.testing.assert_array_equal(np.diff(rows(weights([late, early], 8), 3), axis=0)[:, 0], [0] * 5 + [3] * 3)
    with pytest.raises(UserError, match="no source has a weight above 0 at step 5"):
        weights([early], 8)


@settings(max_examples=40)
@given(
    windows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_source_gives_every_window_once_before_any_again(windows, batch, seed):
    steps = 30
    mixture = Mixture(sources(*range(1, 1 + len(windows))), windows, steps, batch, seed)
    found = [mixture.at(step, np.arange(batch)) for step in range(steps)]
    for number, count in enumerate(windows):
        mine = np.concatenate([np.sort(window[source == number]) for source, window in found])
        total = sum((source == number).sum() for source, _ in found)
        assert len(mine) == total == round(mixture.shares(steps)[number] * steps * batch)
        assert mixture.epochs(steps)[number] == pytest.approx(total / count)
        times = np.bincount(mine, minlength=count)
        assert times.max() - times.min() <= 1
        assert times.min() == total // count


def test_rows_are_the_same_asked_alone_and_together_and_sources_are_mixed_inside_a_batch():
    mixture = Mixture(sources(1, 3), [100, 57], 20, 8, seed=4)
    together = [mixture.at(step, np.arange(8)) for step in range(20)]
    for step in (0, 7, 19):
        for row in range(8):
            source, window = mixture.at(step, np.array([row]))
            assert (source[0], window[0]) == (together[step][0][row], together[step][1][row])
    assert len({tuple(source.tolist()) for source, _ in together}) > 5


def test_another_seed_and_another_epoch_have_another_order():
    def order(seed):
        mixture = Mixture(sources(1), [50], 20, 10, seed)
        return np.concatenate([mixture.at(step, np.arange(10))[1] for step in range(20)]).reshape(4, 50)

    epochs = order(0)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert (order(0) == epochs).all()
    assert (order(1) != epochs).any()


def test_two_sources_of_one_size_do_not_go_in_step():
    mixture = Mixture(sources(1, 1), [64, 64], 16, 8, seed=0)
    found = [mixture.at(step, np.arange(8)) for step in range(16)]
    one, two = (np.concatenate([window[source == k] for source, window in found]) for k in (0, 1))
    assert (one != two).mean() > 0.8
