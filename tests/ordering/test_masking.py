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
    assert not (masking.rows.end - masking.rows.start)[:, segments == 0].any()


def test_rows_see_their_document_and_of_what_is_ahead_as_much_as_the_reach_says(packed):
    keys = example_keys(1, 0, len(packed))
    for reach in (0.0, 0.5, 1.0):
        masking = jax.tree.map(np.asarray, draw_masking(keys, packed, reach))
        for window, places in documents(packed):
            assert (masking.rows.start[window, places] == places[0]).all()
            ahead = np.floor(reach * (places[-1] - places)).astype(int)
            np.testing.assert_array_equal(masking.rows.end[window, places], places + 1 + ahead)
            np.testing.assert_array_equal(masking.rows.position[window, places], places - places[0])


def test_documents_draw_their_own(drawn):
    segments, masking = drawn
    places = [np.flatnonzero(segments[2] == number) for number in (1, 2)]
    one, other = (masking.masked[:, 2][:, place].mean(1) for place in places)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_rows_of_blocks_see_clean_blocks_before_theirs_and_their_own_noisy_one(packed):
    size, length = 5, packed.shape[1]
    masking = jax.tree.map(np.asarray, draw_masking(example_keys(1, 0, len(packed)), packed, block=size))
    rows, place = masking.rows, np.arange(length)
    for window, segments in enumerate(packed):
        seen = np.zeros((2 * length, 2 * length), bool)
        for row in range(2 * length):
            seen[row, rows.start[window, row] : rows.end[window, row]] = True
            seen[row, rows.own[0][window, row] : rows.own[1][window, row]] = True
        document = (segments[:, None] == segments[None]) & (segments > 0)
        block = place // size
        before, same = block[None] < block[:, None], block[None] == block[:, None]
        np.testing.assert_array_equal(seen[:length], np.hstack([document & (before | same), np.zeros_like(document)]))
        np.testing.assert_array_equal(seen[length:], np.hstack([document & before, document & same]))
        np.testing.assert_array_equal(rows.token_index[window], np.tile(place, 2))
        np.testing.assert_array_equal(rows.masked[window], np.append(np.zeros(length, bool), masking.masked[window]))
        for number in np.unique(block):
            for document_number in np.unique(segments[segments > 0]):
                here = (block == number) & (segments == document_number) & masking.predicted[window]
                assert masking.masked[window][here].any() == here.any()
                assert masking.weight[window][here].sum() == pytest.approx(here.sum(), rel=1e-5)


def test_one_block_is_masked_diffusion_and_blocks_of_one_mask_every_token(packed):
    keys = example_keys(2, 0, len(packed))
    whole, one_block = (draw_masking(keys, packed, block=block) for block in (0, packed.shape[1]))
    for a, b in zip(whole[2:], one_block[2:], strict=True):
        np.testing.assert_array_equal(a, b)
    ones = draw_masking(keys, packed, block=1)
    np.testing.assert_array_equal(ones.masked, ones.predicted)
    np.testing.assert_array_equal(ones.weight, ones.predicted)
