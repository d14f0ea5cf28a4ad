"""Orders of one sequence, and the lengths that they are padded to."""

import numpy as np

from a3jax.ordering.sequence import bucket, left_to_right


def test_bucket():
    assert [bucket(n) for n in (1, 32, 33, 64, 65, 1000)] == [32, 32, 64, 64, 128, 1024]


def test_other_orders_are_not_from_left_to_right(draw):
    segments = np.ones(24, np.int32)
    for family, group_size in [("in_order", 2), ("random", 1), ("infill", 1)]:
        assert not left_to_right(draw(3, segments, family, group_size)[2], 24)
