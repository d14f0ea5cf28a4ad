"""A file of requests, one JSON object a line, answered line by line: in constant memory, and resumed where it stopped.

Requests are read a window at a time, filled in batches, and written in the order in which they were asked. Each answer
carries a digest of its request, the options and the model, so that a second run knows what it need not do again, and
notices when it is asked for something else. Windows begin at the same lines in every run, so that a run that was stopped
ends with the bytes of one that was not.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from a3jax.decode.settings import Decoding, DecodingOptions
from a3jax.devices.processes import is_first
from a3jax.devices.writing import by_first, growing_by_first
from a3jax.errors import UserError
from a3jax.files.jsonl import Line
from a3jax.files.reading import count_lines, lines, located, windows
from a3jax.files.strict import build
from a3jax.generate.infill import Infilled
from a3jax.generate.request import Request, Wanted, answer, fill, request
from a3jax.progress import Progress
from a3jax.weights.identity import identity
from a3jax.weights.loading import Model

WINDOW = 4
"""Batches that are read, and sorted by length, before any is filled. A batch of one is filled at once."""
_DECODING = {field.name for field in dataclasses.fields(Decoding)}


class Row(NamedTuple):
    """A request as it was read."""

    where: str
    id: int | str
    wanted: Wanted
    decoding: Decoding

    def digest(self, made_by: str) -> str:
        """Of all that the answer follows from; `made_by` tells the model."""
        parts = [self.id, dataclasses.asdict(self.wanted), self.decoding.recorded(), made_by]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Line(Wanted, DecodingOptions):
    """The fields that a line may have."""

    id: int | str | None = None
    """Repeated in the answer; the number of the line if not given."""


def answer_file(
    model: Model, source: BinaryIO, name: str, out: Path | BinaryIO, choices: DecodingOptions, samples: int, batch: int
) -> dict[str, int]:
    """Answer the requests of `source`, which messages call `name`; as many `samples` of each.

    A path `out` is gone on with, a stream is written to. What a line says of decoding goes before `choices`; without a
    seed of their own, answers have the seeds that follow each other from that of `choices`.

    Of several processes each reads `source`, and process 0 writes `out`. Raises `UserError` for a line that is no request,
    after those before it are answered, and for an `out` that holds the answers to anything else.
    """
    size = batch * WINDOW if batch > 1 else 1
    made_by = json.dumps([str(model.compute), identity(model)])
    rows = _Rows(_rows(source, name, choices, samples), size)
    total = count_lines(source)
    with growing_by_first(out, "answer of a3jax generate", "id", holds=("request",)) as file:
        done = by_first(lambda: _done(file.there(), out, rows, name, made_by))
        again = rows.window(done)
        written, read = done, done - len(again)
        with Progress("generate", total and total * samples, "texts", completed=done - len(again), lines=is_first()) as bar:
            for window in windows(_requests(model, itertools.chain(again, rows.rest)), size):
                read += len(window)
                filled = fill(model, [one for _, one in window], min(batch, read), done=bar.advance)
                answers = [_answer(row, text, made_by) for (row, _), text in zip(window, filled)]
                by_first(functools.partial(file.append, answers[written - (read - len(window)) :]))
                written = read
    return {"done_before": done, "answered": written - done}


def _answer(row: Row, filled: Infilled, made_by: str) -> dict[str, Any]:
    return {"id": row.id, "request": row.digest(made_by), "seed": row.decoding.seed, **answer(filled)}


def _rows(source: BinaryIO, name: str, choices: DecodingOptions, samples: int) -> Iterator[Row]:
    count = itertools.count()
    for line in lines(source, name):
        with located(line.where):
            read = build(_Line, line.value, line.where)
            wanted = Wanted(**{field.name: getattr(read, field.name) for field in dataclasses.fields(Wanted)})
            wanted.check()
            own = {name: getattr(read, name) for name in _DECODING & line.value.keys()}
            chosen = dataclasses.replace(choices, **own)
            for sample in range(samples):
                seed = chosen.seed + (sample if "seed" in own else next(count))
                row_id = line.number if read.id is None else read.id
                yield Row(line.where, row_id, wanted, wanted.decoding(chosen, seed=seed))


def _requests(model: Model, rows: Iterator[Row]) -> Iterator[tuple[Row, Request]]:
    for row in rows:
        with located(row.where):
            asked = request(model, row.wanted, row.decoding)
        yield row, asked


class _Rows:
    """The requests, of which the first may be answered already."""

    def __init__(self, rows: Iterator[Row], size: int):
        """`size` of a window."""
        self.rest, self._size = rows, size
        self.count, self._window = 0, list[Row]()

    def read(self) -> Row | None:
        """The next one, None if there is none."""
        if (row := next(self.rest, None)) is not None:
            self._window = [*self._window, row] if self.count % self._size else [row]
            self.count += 1
        return row

    def window(self, done: int) -> list[Row]:
        """The first `done` are answered: those of them whose window is not full. Passes over what is not read yet."""
        while self.count < done:
            self.read()
        return self._window if done % self._size else []


def _done(answers: Iterator[Line], out: Path | BinaryIO, rows: _Rows, name: str, made_by: str) -> int:
    """How many answers are there already, to the first of the requests."""
    for line in answers:
        row = rows.read()
        if row is None:
            raise UserError(f"{out} has more answers than {name} requests; give the file they are for, or choose another")
        if line.value.get("request") != row.digest(made_by):
            what = f"{line.where} answers something else than {row.where}"
            raise UserError(f"{what}: the request, an option or the model has changed; choose another file")
    return rows.count
