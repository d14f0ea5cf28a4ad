"""Orders computed place by place: one-to-one for every size, and as even as random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3jax.data.permutation import key, permute, shuffled

keys = st.integers(0, 2**63).map(key)


@given(size=st.integers(1, 3000), order=keys)
def test_every_index_goes_to_a_place_of_its_own(size, order):
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, order)), np.arange(size))
    np.testing.assert_array_equal(np.sort(shuffled(size, order)), np.arange(size))


@given(size=st.sampled_from([2**33, 10**12 + 1]), order=keys)
def test_ranges_that_are_too_large_for_an_array_have_places_too(size, order):
    places = permute(np.arange(size - 500, size), size, order)
    assert len(set(places.tolist())) == 500
    assert 0 <= places.min() <= places.max() < size


def test_indices_may_have_keys_of_their_own():
    first, second = key(1), key(2)
    index = np.arange(100)
    mixed = permute(np.tile(index, 2), 100, np.repeat([first, second], 100))
    np.testing.assert_array_equal(mixed, np.concatenate([permute(index, 100, k) for k in (first, second)]))


@pytest.mark.parametrize("size", [5, 40])
@pytest.mark.parametrize("order", ["permute", "shuffled"])
def test_every_pair_of_index_and_place_is_as_likely(size, order):
    """Chi-square over 20,000 keys that differ as epochs do; its standard deviation is sqrt(2 freedom)."""
    trials, counts = 20_000, np.zeros((size, size))
    every = key(7, np.arange(trials))
    if order == "permute":
        places = permute(np.tile(np.arange(size), trials), size, np.repeat(every, size)).reshape(trials, size)
    else:
        places = np.stack([shuffled(size, one) for one in every])
    for index in range(size):
        counts[index] = np.bincount(places[:, index], minlength=size)
    expected, freedom = trials / size, (size - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    """In a random order of 1000, about 2 pairs of neighbours have neighbouring places."""
    places = permute(np.arange(1000), 1000, key(3))
    assert np.mean(np.abs(np.diff(places)) == 1) < 0.02


def test_keys_depend_on_every_number_and_on_their_order():
    made = [key(1, 2, 3), key(1, 2, 4), key(0, 2, 3), key(3, 2, 1), key(1, 2), key(1, 2, 3, 0)]
    assert len({int(k) for k in made}) == len(made)
    np.testing.assert_array_equal(key(1, np.array([5, 6])), [key(1, 5), key(1, 6)])
