"""What a step counts equals an enumeration of the pairs that see each other, padding and repeated context included."""

import dataclasses

import jax
import numpy as np
import pytest

from a3jax.checkpoint.folder import find
from a3jax.curriculum.schedule import Schedule
from a3jax.curriculum.stage import Stage
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.train import flops
from a3jax.train.counts import Counts, counted, full_window
from a3jax.train.loop import train
from a3jax.train.metrics import read

PACKED = np.array(
    [[1] * 24, [1] * 9 + [2] * 2 + [3] * 13, [1] * 14 + [2] * 6 + [0] * 4, [-1] * 5 + [1] * 7 + [0] * 12], np.int32
)
"""One document; three; two and padding; one whose first five tokens are repeated as context, and padding."""


WINDOW = 5


@pytest.mark.parametrize("content", ["group", "slot"])
@pytest.mark.parametrize(("family", "size"), [("in_order", 1), ("in_order", 4), ("random", 4), ("infill", 3), ("spans", 5)])
def test_counts_equal_an_enumeration_of_visible_pairs(family, size, content, draw, tiny):
    model = tiny(content=content, local_layers=(1,), local_window=WINDOW)
    total = np.zeros(len(Counts._fields))
    orders = []
    for row, segment_L in enumerate(PACKED):
        _, group_L, order = draw(row, np.abs(segment_L), family, size)
        given_L = np.ones(len(segment_L), bool)
        given_L[order.token_index[order.predicted]] = False
        orders.append(order)
        for i in np.flatnonzero(segment_L):
            mates = np.flatnonzero(np.abs(segment_L) == abs(segment_L[i]))
            known = group_L[mates] < group_L[i]
            seen = known | (group_L[mates] == group_L[i]) & ((mates <= i) | (content == "group"))
            before, predicted = mates <= i, not given_L[i]
            total[:3] += [segment_L[i] > 0, predicted, 1]
            near, near_query = (abs(mates - stands) < WINDOW for stands in (i, max(i - 1, mates[0])))
            total[3:6] += [seen.sum(), known.sum() * predicted, before.sum()]
            total[6:] += [(seen & near).sum(), (known & near_query).sum() * predicted, (before & near).sum()]
    order = jax.tree.map(lambda *rows: np.stack(rows), *orders)
    np.testing.assert_array_equal([float(x) for x in counted(order, PACKED, model)], total)


@pytest.mark.parametrize("family", ["random", "in_order"])
def test_a_full_window_is_counted_as_plans_count_it(family, draw, tiny):
    length, window = 1024, 400
    segments = np.ones(length, np.int32)
    order = jax.tree.map(lambda x: x[None], draw(0, segments, family, 4, given=0.0)[2])
    found = counted(order, segments[None], tiny(local_layers=(1,), local_window=window))
    planned = full_window(length, local_window=window)
    np.testing.assert_allclose([float(x) for x in found], planned, rtol=0.01)


def test_metrics_and_record_count_what_was_read_and_no_padding(experiment, monkeypatch):
    """Documents of 10 to 200 bytes in windows of 32, some of which are padded or repeat context."""
    peak, config = 1e9, experiment()
    monkeypatch.setattr(flops, "peak", lambda device: peak)
    data = dataclasses.replace(config.data, packing="best_fit", overlap=4)
    config = dataclasses.replace(config, data=data, curriculum=(Stage(3), Stage(3, "random", 4, given=0.5)))
    train(config)
    batches = Batches(open_corpora(data), data, 6, config.seed, None, Schedule(config.curriculum, data.batch).batch_S)
    rows = [row for row in read(config.run_folder) if "loss" in row]
    read_so_far, padding = 0, 0
    for step, row in enumerate(rows):
        segments = batches[step]["segments"]
        own, padding = int((segments > 0).sum()), padding + int((segments <= 0).sum())
        read_so_far += own
        assert row["tokens"] == own
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(own)
        assert row["predicted_tokens_per_second"] * row["seconds"] == pytest.approx(row["predicted"])
        useful = row["mfu"] * row["seconds"] * peak
        if step < 3:  # from left to right a document of n tokens has n (n + 1) / 2 visible pairs, and n - 1 predictions
            sizes = [n for one in np.abs(segments) for n in np.bincount(one)[1:] if n]
            context = int((segments < 0).sum())
            begins = np.diff(np.abs(segments), axis=1, prepend=0) != 0
            starts = int((begins & (segments > 0)).sum())  # the others begin with a repeated token
            assert row["predicted"] == own - starts
            pairs = sum(n * (n + 1) / 2 for n in sizes)
            counts = Counts(own, row["predicted"], own + context, pairs, 0, pairs, 0, 0, 0)
            model, stage = config.model, config.curriculum[0]
            assert useful == pytest.approx(flops.useful(model, stage, counts))
            weights = model.layers * (4 * 16 * 8 + 2 * 16 * 8 + 3 * 16 * 24)
            by_hand = 6 * (weights * sum(sizes) + 16 * 258 * row["predicted"]) + 12 * model.layers * 16 * pairs
            assert useful == pytest.approx(by_hand)
        else:
            assert useful < len(segments) * flops.per_window(config.model, config.curriculum[1], data.length)
            assert row["predicted"] < own
    assert padding > 0
    assert find(config.run_folder).record.tokens == read_so_far
