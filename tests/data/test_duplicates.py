"""Duplicates: the same that a dictionary finds, however many digests are compared at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.data.duplicates import DIGEST, find_duplicates, save_digests


@settings(max_examples=60)
@given(shards=st.lists(st.lists(st.tuples(*[st.integers(0, 3)] * 2), max_size=12), max_size=5), bucket=st.integers(1, 40))
def test_all_but_the_first_of_equal_digests_are_found(shards, bucket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digests")
    paths = [folder / f"{i}.digests" for i in range(len(shards))]
    for path, shard in zip(paths, shards):
        save_digests(path, np.array(shard, DIGEST).tobytes())
    seen, expected = set(), []
    for shard in shards:
        expected.append([i for i, digest in enumerate(shard) if digest in seen or seen.add(digest)])
    assert [found.tolist() for found in find_duplicates(paths, bucket)] == expected
