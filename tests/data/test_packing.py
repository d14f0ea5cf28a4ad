"""Windows: every token in one of them, no segment of two documents, and best fit no worse than a plain search for it."""

import pickle

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3jax.data import packing as module
from a3jax.data.corpus import TokenStream
from a3jax.data.packing import BestFit, Concat, Truncate, best_fit, padding, read_windows


def stream_of(sizes, folder):
    documents = corpora.numbered(sizes, first=1)
    half = len(documents) // 2
    corpus = corpora.write(folder, [documents[:half], documents[half:]])
    return TokenStream(corpus.folder, corpus.manifest, "train"), documents


def every_window(packing):
    return read_windows(packing, np.arange(len(packing)))


sizes_and_length = st.tuples(st.lists(st.integers(1, 70), min_size=1, max_size=30), st.integers(2, 24))


@settings(max_examples=40)
@given(sizes_and_length=sizes_and_length, kind=st.sampled_from([Concat, BestFit]))
def test_every_token_is_in_exactly_one_window_and_in_order_inside_its_segment(sizes_and_length, kind, tmp_path_factory):
    sizes, length = sizes_and_length
    stream, _ = stream_of(sizes, tmp_path_factory.mktemp("c"))
    packing = kind(stream, length)
    windows = every_window(packing)
    tokens, segments = windows["tokens"], windows["segments"]
    assert tokens.shape == segments.shape == (len(packing), length)
    assert tokens.dtype == segments.dtype == np.int32
    np.testing.assert_array_equal(np.sort(tokens[segments > 0]), np.arange(1, 1 + sum(sizes)))
    assert (tokens[segments == 0] == 0).all()
    assert packing.repeated == 0
    assert padding(packing) == pytest.approx(np.mean(segments == 0))
    document_of = np.repeat(np.arange(len(sizes)), sizes)
    for row, numbers in zip(tokens, segments):
        filled = numbers > 0
        assert not filled[np.argmin(filled) :].any() or filled.all(), "padding comes last"
        np.testing.assert_array_equal(np.unique(numbers[filled]), np.arange(1, numbers.max() + 1))
        for number in range(1, numbers.max() + 1):
            piece = row[numbers == number]
            np.testing.assert_array_equal(piece, np.arange(piece[0], piece[0] + len(piece)))
            assert len(set(document_of[piece - 1])) == 1


@settings(max_examples=40)
@given(sizes_and_length=sizes_and_length, data=st.data())
def test_repeated_tokens_are_context_and_every_other_is_there_once(sizes_and_length, data, tmp_path_factory):
    sizes, length = sizes_and_length
    overlap = data.draw(st.integers(1, length - 1))
    stream, _ = stream_of(sizes, tmp_path_factory.mktemp("c"))
    packing = BestFit(stream, length, overlap)
    windows = every_window(packing)
    tokens, segments = windows["tokens"], windows["segments"]
    np.testing.assert_array_equal(np.sort(tokens[segments > 0]), np.arange(1, 1 + sum(sizes)))
    assert (segments < 0).sum() == packing.repeated
    assert padding(packing) == pytest.approx(np.mean(segments == 0))
    document_of = np.repeat(np.arange(len(sizes)), sizes)
    for row, numbers in zip(tokens, segments):
        for number in np.unique(np.abs(numbers[numbers != 0])):
            piece, own = row[np.abs(numbers) == number], numbers[np.abs(numbers) == number]
            np.testing.assert_array_equal(piece, np.arange(piece[0], piece[0] + len(piece)))
            assert len(set(document_of[piece - 1])) == 1
            assert (own > 0).any(), "no piece is context alone"
            context = int((own < 0).sum())
            assert (own[:context] < 0).all()
            begins = bool(piece[0] == 1 or document_of[piece[0] - 2] != document_of[piece[0] - 1])
            assert context == (0 if begins else overlap)


@settings(max_examples=40)
@given(sizes_and_length=sizes_and_length, block=st.sampled_from([1, 3, 2**16]))
def test_truncate_gives_every_document_a_window_and_cuts_it(sizes_and_length, block, tmp_path_factory):
    sizes, length = sizes_and_length
    stream, documents = stream_of(sizes, tmp_path_factory.mktemp("c"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_RECORDS", block)
        packing = Truncate(stream, length)
    windows = every_window(packing)
    assert len(packing) == len(documents)
    for document, tokens, segments in zip(documents, *windows.values(), strict=True):
        kept = min(len(document), length)
        np.testing.assert_array_equal(tokens, np.pad(document[:kept], (0, length - kept)))
        np.testing.assert_array_equal(segments, np.arange(length) < kept)
    assert packing.left_out == sum(max(0, size - length) for size in sizes)
    assert padding(packing) == pytest.approx(np.mean(windows["segments"] == 0))
    again = read_windows(pickle.loads(pickle.dumps(packing)), np.array([len(packing) - 1]))  # as worker processes get it
    np.testing.assert_array_equal(again["tokens"], windows["tokens"][-1:])


def test_concat_pads_only_its_last_window(tmp_path):
    stream, _ = stream_of([5, 9, 3], tmp_path)
    windows = every_window(Concat(stream, 6))
    np.testing.assert_array_equal(windows["tokens"], [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 0]])
    np.testing.assert_array_equal(windows["segments"], [[1, 1, 1, 1, 1, 2], [1] * 6, [1, 1, 2, 2, 2, 0]])


def test_best_fit_keeps_documents_whole_in_the_fullest_window_that_has_room(tmp_path):
    stream, _ = stream_of([4, 6, 2, 5, 3, 17], tmp_path)
    windows = every_window(BestFit(stream, 8))
    rows = [[set(row[numbers == n].tolist()) for n in range(1, numbers.max() + 1)] for row, numbers in zip(*windows.values())]
    assert [sorted(map(len, row)) for row in rows] == [[8], [8], [2, 6], [3, 5], [1, 4]]


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_equals_a_plain_search(sizes):
    """Against the rule said plainly: longest first, into the bin with the least room that is enough."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(20 - size)
    bins = best_fit(sizes, 20)
    used = np.bincount(bins, weights=sizes, minlength=len(rooms)) if sizes else np.zeros(0)
    assert len(used) == len(rooms)
    assert sorted((20 - used).tolist()) == sorted(rooms)


def test_best_fit_is_the_same_whatever_the_size_of_its_blocks_where_one_holds_all(tmp_path, monkeypatch):
    """Documents go on over the edges of blocks: none is lost there."""
    sizes = [3, 9, 30, 1, 1, 12, 7, 2]
    stream, _ = stream_of(sizes, tmp_path)
    for records in (1, 2, 3, 100):
        monkeypatch.setattr(module, "BLOCK_RECORDS", records)
        windows = every_window(BestFit(stream, 10))
        np.testing.assert_array_equal(np.sort(windows["tokens"][windows["segments"] > 0]), np.arange(1, 1 + sum(sizes)))


def test_windows_are_the_same_one_by_one_and_in_any_order(tmp_path):
    stream, _ = stream_of([5, 40, 9, 3, 22, 1, 1], tmp_path)
    for packing in (Concat(stream, 8), BestFit(stream, 8), BestFit(stream, 8, 3)):
        together = every_window(packing)
        for numbers in ([2], [4, 0], [3, 3]):
            some = read_windows(packing, np.array(numbers))
            for name in some:
                np.testing.assert_array_equal(some[name], together[name][numbers])
