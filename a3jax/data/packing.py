"""Documents -> windows of L tokens. Which tokens a window holds follows from its number alone.

`Concat` cuts the stream of tokens every L tokens: nothing is padded but the last window. `BestFit` puts whole documents
into windows wherever they fit best, and pads. Either way a document inside a window is a *segment* that attends to
nothing but itself, and every token of the stream is in exactly one window, or is repeated as context where that is
asked for. `Truncate` gives every document a window of its own, and leaves out what does not fit.

A window is read as pieces: spans of the stream's positions, laid one after another.
"""

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from a3jax.data.corpus import Span, TokenStream

Windows = dict[str, np.ndarray]
"""`tokens` and `segments`, both B x L int32. Segments number a window's documents from 1 and are 0 where there is padding;
a negative one marks a token of that document which is there as context only: a prompt's, or one that another window
predicts."""

BLOCK_RECORDS = 2**16
"""`BestFit` looks for the best place among windows that begin with so many records of the corpus at a time."""


class Pieces(NamedTuple):
    """What windows hold: one entry per piece, those of a window in order and windows in order."""

    row_N: np.ndarray
    """To which of the windows asked for the piece belongs."""
    begin_N: np.ndarray
    end_N: np.ndarray
    context_N: np.ndarray
    """How many tokens at its beginning are repeated as context."""


class Packing(Protocol):
    """A stream cut into windows."""

    stream: TokenStream
    length: int
    repeated: int
    """Tokens that are in two windows, over all windows."""
    left_out: int
    """Tokens that are in none."""

    def __len__(self) -> int:
        """How many windows there are."""

    def pieces(self, window_B: np.ndarray) -> Pieces:
        """What windows hold, by their numbers."""


class Concat:
    """Window w is tokens [w L, (w+1) L) of the stream."""

    repeated = left_out = 0

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, length

    def __len__(self) -> int:
        return -(-len(self.stream) // self.length)

    def pieces(self, window_B: np.ndarray) -> Pieces:  # noqa: D102, the protocol says it
        begin_B = window_B * self.length
        end_B = np.minimum(begin_B + self.length, len(self.stream))
        return Pieces(np.arange(len(window_B)), begin_B, end_B, np.zeros(len(window_B), np.int64))


class BestFit:
    """Whole documents, each in the fullest window that still has room for it, the longest first.

    A document of more than L tokens is cut into pieces of L that begin `overlap` tokens before the last one ended; those
    tokens are context, so that what follows a cut is not predicted from nothing. The plan is made once, of blocks of
    documents that follow one another, and kept in an unnamed file rather than in memory.
    """

    left_out = 0

    def __init__(self, stream: TokenStream, length: int, overlap: int = 0):
        self.stream, self.length, self._overlap = stream, length, overlap
        self.repeated = 0
        with tempfile.TemporaryFile() as pieces, tempfile.TemporaryFile() as edges:
            count = 0
            for begins, ends in _blocks(stream):
                block, sizes = self._plan(begins, ends)
                pieces.write(block.tobytes())
                edges.write((count + np.cumsum(sizes) - sizes).astype(np.int64).tobytes())
                count += len(block)
            edges.write(np.int64(count).tobytes())
            self._pieces, self._edges = _mapped(pieces, _PIECE), _mapped(edges, np.dtype(np.int64))

    def __len__(self) -> int:
        return len(self._edges) - 1

    def pieces(self, window_B: np.ndarray) -> Pieces:  # noqa: D102
        from_B, to_B = self._edges[window_B], self._edges[window_B + 1]
        row_N = np.repeat(np.arange(len(window_B)), to_B - from_B)
        piece_N = self._pieces[np.arange(len(row_N)) + (to_B - np.cumsum(to_B - from_B))[row_N]]
        return Pieces(row_N, piece_N["begin"], piece_N["begin"] + piece_N["size"], piece_N["context"].astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        return BestFit, (self.stream, self.length, self._overlap)

    def _plan(self, begin_D: np.ndarray, end_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of documents, sorted by window, and how many each window has."""
        stride = self.length - self._overlap
        cuts_D = np.maximum(1, -(-(end_D - begin_D - self._overlap) // stride))
        document_N = np.repeat(np.arange(len(begin_D)), cuts_D)
        cut_N = np.arange(len(document_N)) - np.repeat(np.cumsum(cuts_D) - cuts_D, cuts_D)
        piece_N = np.empty(len(document_N), _PIECE)
        piece_N["begin"] = begin_D[document_N] + cut_N * stride
        piece_N["size"] = np.minimum(end_D[document_N] - piece_N["begin"], self.length)
        piece_N["context"] = np.where(cut_N > 0, self._overlap, 0)
        self.repeated += int(piece_N["context"].sum())
        window_N = best_fit(piece_N["size"].tolist(), self.length)
        order = np.argsort(window_N, kind="stable")
        return piece_N[order], np.bincount(window_N)


class Truncate:
    """Window w is the first L tokens of document w. Where these are is kept in an unnamed file rather than in memory."""

    repeated = 0

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, length
        with tempfile.TemporaryFile() as file:
            kept = 0
            for begin_D, end_D in _blocks(stream):
                block = np.empty(len(begin_D), _PIECE)
                block["begin"], block["size"], block["context"] = begin_D, np.minimum(end_D - begin_D, length), 0
                kept += int(block["size"].sum())
                file.write(block.tobytes())
            self._pieces = _mapped(file, _PIECE)
        self.left_out = len(stream) - kept

    def __len__(self) -> int:
        return len(self._pieces)

    def pieces(self, window_B: np.ndarray) -> Pieces:  # noqa: D102
        piece_B = self._pieces[window_B]
        end_B = piece_B["begin"] + piece_B["size"]
        return Pieces(np.arange(len(window_B)), piece_B["begin"], end_B, piece_B["context"].astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        return Truncate, (self.stream, self.length)


def padding(packing: Packing) -> float:
    """The share of all windows that is padding."""
    return 1 - (len(packing.stream) + packing.repeated - packing.left_out) / (len(packing) * packing.length)


def best_fit(sizes: Sequence[int], length: int) -> np.ndarray:
    """Put items into bins of `length` by best-fit decreasing: the bin of each, numbered in the order they are opened.

    Every size must be from 1 to `length`.
    """
    bins_by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r is set where some bin has room for exactly r
    result, opened = np.empty(len(sizes), np.int64), 0
    for item in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size = sizes[item]
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            chosen = bins_by_room[room].pop()
            if not bins_by_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen, opened = length, opened, opened + 1
        result[item] = chosen
        if left := room - size:
            bins_by_room[left].append(chosen)
            rooms |= 1 << left
    return result


def read_windows(packing: Packing, window_B: np.ndarray) -> Windows:
    """The windows of these numbers."""
    pieces = packing.pieces(window_B)
    return fill(pieces, packing.stream.read(pieces.begin_N, pieces.end_N), len(window_B), packing.length)


def fill(pieces: Pieces, span: Span, rows: int, length: int) -> Windows:
    """Windows of pieces, whose tokens follow one another in `span`."""
    row_N, begin_N, end_N, context_N = pieces
    size_N = end_N - begin_N
    place_N = np.cumsum(size_N) - size_N
    span.first[place_N] = True
    if context_N.any():
        context_T = np.arange(len(span.tokens)) - np.repeat(place_N, size_N) < np.repeat(context_N, size_N)
        span = span._replace(given=span.given | context_T)
    return lay_out(span, np.repeat(row_N, size_N), rows, length)


def lay_out(span: Span, row_T: np.ndarray, rows: int, length: int) -> Windows:
    """Tokens, one window's after another's, into windows. What is first begins a segment; `row_T` says in which."""
    tokens_T, first_T, given_T = span
    filled = np.bincount(row_T, minlength=rows)
    begin_B = np.cumsum(filled) - filled
    place_T = np.arange(len(tokens_T)) + (np.arange(rows) * length - begin_B)[row_T]
    segment_T = np.cumsum(first_T)
    before_B = segment_T[np.minimum(begin_B, len(segment_T) - 1)] - 1
    windows = {name: np.zeros(rows * length, np.int32) for name in ("tokens", "segments")}
    windows["tokens"][place_T] = tokens_T
    windows["segments"][place_T] = (segment_T - before_B[row_T]) * np.where(given_T, -1, 1)
    return {name: array.reshape(rows, length) for name, array in windows.items()}


_PIECE = np.dtype([("begin", "<i8"), ("size", "<i4"), ("context", "<i4")])


def _blocks(stream: TokenStream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The begins and ends of documents, block by block; a block ends where the next document begins."""
    begins = np.zeros(0, np.int64)
    for more in stream.documents(BLOCK_RECORDS):
        if len(begins) and len(more):
            yield begins, np.append(begins[1:], more[0])
            begins = more
        else:
            begins = np.concatenate([begins, more])
    if len(begins):
        yield begins, np.append(begins[1:], len(stream))


def _mapped(file: IO[bytes], dtype: np.dtype) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype, "r") if file.tell() else np.zeros(0, dtype)
