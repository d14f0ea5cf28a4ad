"""What is masked in a window of documents, and what its rows see then."""

import jax
import numpy as np
import pytest

from a3jax.ordering import draw_masking, example_keys

DRAWS = 3000


@pytest.fixture(scope="module")
def drawn(packed):
    """Many draws for windows of documents, the first three tokens of one of them given."""
    segments = packed.copy()
    segments[1, :3] *= -1
    many = np.repeat(segments[None], DRAWS, 0).reshape(-1, segments.shape[1])
    masking = jax.jit(draw_masking)(example_keys(0, 0, len(many)), many)
    return segments, jax.tree.map(lambda x: np.asarray(x).reshape(DRAWS, *segments.shape), masking)


def documents(segments):
    """Window, and places, of every document."""
    return [
        (i, np.flatnonzero(np.abs(row) == number))
        for i, row in enumerate(segments)
        for number in np.unique(np.abs(row[row != 0]))
    ]


def test_as_many_tokens_are_masked_as_are_drawn_evenly_and_each_as_often(drawn):
    segments, masking = drawn
    for window, places in documents(segments):
        free = places[(places > places[0]) & (segments[window, places] > 0)]
        masked = masking.masked[:, window][:, free]
        count = masked.sum(1)
        assert (set(count) == set(range(1, len(free) + 1))) if len(free) else not masked.size
        for number in range(1, len(free) + 1):
            assert np.mean(count == number) == pytest.approx(1 / len(free), abs=0.04)
        share = (len(free) + 1) / 2 / max(1, len(free))
        np.testing.assert_allclose(masked.mean(0), share, atol=0.05)
        np.testing.assert_allclose(masking.weight[:, window][:, free].sum(1), len(free), rtol=1e-5)
        np.testing.assert_array_equal(masking.predicted[0, window][places], np.isin(places, free))


def test_given_tokens_and_padding_are_never_masked(drawn):
    segments, masking = drawn
    first = np.diff(np.abs(segments), axis=1, prepend=-1) != 0
    never = first | (segments <= 0)
    assert not masking.masked[:, never].any()
    assert not masking.weight[:, never].any()
    assert not (masking.end - masking.start)[:, segments == 0].any()


def test_rows_see_their_document_and_of_what_is_ahead_as_much_as_the_reach_says(packed):
    keys = example_keys(1, 0, len(packed))
    for reach in (0.0, 0.5, 1.0):
        masking = jax.tree.map(np.asarray, draw_masking(keys, packed, reach))
        for window, places in documents(packed):
            assert (masking.start[window, places] == places[0]).all()
            ahead = np.floor(reach * (places[-1] - places)).astype(int)
            np.testing.assert_array_equal(masking.end[window, places], places + 1 + ahead)
            np.testing.assert_array_equal(masking.position[window, places], places - places[0])


def test_documents_draw_their_own(drawn):
    segments, masking = drawn
    places = [np.flatnonzero(segments[2] == number) for number in (1, 2)]
    one, other = (masking.masked[:, 2][:, place].mean(1) for place in places)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
