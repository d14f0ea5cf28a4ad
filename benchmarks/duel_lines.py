"""Lines of Python, filled in by every decoder that a model has: how good, in how many passes, and in which time.

A line of each file is blanked, as task `code` of `a3jax evaluate` draws it, and stands between some text of both sides. What
is filled in is exact if it is the truth, and parses if the whole file with it is Python.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from a3jax.decode.document import Document, lay_out
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.evaluate.blanks import BOTH, LEFT
from a3jax.evaluate.code import blanks, is_python
from a3jax.evaluate.rouge import rouge
from a3jax.evaluate.task import Item
from a3jax.evaluate.texts import Text
from a3jax.generate.request import Request, fill
from a3jax.generate.text_likelihood import blanks_log_likelihoods
from a3jax.likelihood.scoring import Likelihood
from a3jax.ordering.sequence import bucket
from a3jax.weights.loading import Model

BEFORE, AFTER = 128, 64
"""Tokens around a blank, at most."""
LEAST, MOST = 3, 32
"""Tokens of a line."""
TRUTH = "truth"
"""The table of what the true line costs, where the others are of what was filled in."""


class Way(NamedTuple):
    """How lines are filled in."""

    decoding: Decoding
    sees: str = BOTH


class Line(NamedTuple):
    """A line of a file, what is shown around it, and the rest of the file."""

    head: str
    before: str
    truth: str
    after: str
    tail: str


class Lines:
    """Exact match, ROUGE-L, share that parses, passes and seconds a token, and nats of the truth, by decoder."""

    name = "lines"

    def __init__(self, model: Model, ways: dict[str, Way], source: str, files: Sequence[Text], limit: int, seed: int = 0):
        """A line each of the first `limit` files that have one."""
        self._model, self._ways = model, ways
        self._compiled: set[tuple[str, int, int]] = set()
        self.items: list[Item] = []
        left_out = 0
        for file in files:
            if len(self.items) == limit:
                break
            lines = [blank for kind, blank in blanks(file, seed) if kind == "line"] if is_python(file.text) else []
            found = [line for blank in lines if (line := self._line(blank.before, blank.truth, blank.after))]
            left_out += not found
            self.items += [Item(file.id, len(self._document(line, BOTH).tokens), line) for line in found]
        self.protocol = {
            "before": BEFORE,
            "after": AFTER,
            "tokens": [LEAST, MOST],
            "seed": seed,
            "ways": {name: {"sees": way.sees, **way.decoding.recorded()} for name, way in ways.items()},
        }
        self.data = {"source": source, "lines": len(self.items), "left_out": {"files without such a line": left_out}}

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Fill every line in every way; twice where a program may have to be compiled, and then the second time counts."""
        lines = [Line(*item.content) for item in items]
        rows: list[dict[str, Any]] = [{"truth": line.truth, "texts": {}, "figures": {TRUTH: {}}} for line in lines]
        scored: dict[tuple[str, str], list[Likelihood]] = {}
        for name, way in self._ways.items():
            documents = [self._document(line, way.sees) for line in lines]
            requests = [self._request(line, document, way) for line, document in zip(lines, documents)]
            if (program := (name, *self._sizes(documents))) not in self._compiled:
                fill(self._model, requests, batch)
                self._compiled.add(program)
            begun = time.process_time()
            filled = fill(self._model, requests, batch)
            seconds = (time.process_time() - begun) / len(lines)
            if (seen := (way.sees, _likelihood(way.decoding))) not in scored:
                scored[seen] = blanks_log_likelihoods(self._model, documents, way.decoding)
            for line, document, one, score, row in zip(lines, documents, filled, scored[seen], rows):
                text, tokens = one.blanks[0].text, document.own
                row["texts"][name] = text
                row["figures"][TRUTH][name] = {"nats per token": (-score.total, tokens)}
                row["figures"].setdefault(self.name, {})[name] = {
                    "exact": (float(text.rstrip() == line.truth.rstrip()), 1),
                    "parses": (float(is_python(line.head + line.before + text + line.after + line.tail)), 1),
                    "ROUGE-L": (rouge(line.truth, text)["ROUGE-L"], 1),
                    "passes per token": (one.forwards, tokens),
                    "milliseconds per token": (1000 * seconds, tokens),
                }
        return rows

    def _line(self, before: str, truth: str, after: str) -> Line | None:
        """Cut what is around to its tokens next to the blank; None for a line too short or long, or at the beginning."""
        codec = self._model.codec.tokenizer
        if not before.strip() or not LEAST <= len(codec.encode(truth, add_special_tokens=False).ids) <= MOST:
            return None
        left, right = (codec.encode(text, add_special_tokens=False).offsets for text in (before, after))
        begin = left[-BEFORE][0] if len(left) > BEFORE else 0
        end = right[AFTER - 1][1] if len(right) > AFTER else len(after)
        return Line(before[:begin], before[begin:], truth, after[:end], after[end:])

    def _document(self, line: Line, sees: str) -> Document:
        return lay_out(
            (line.before, line.after if sees == BOTH else ""), [line.truth], self._model.codec, self._model.healing
        )

    def _sizes(self, documents: Sequence[Document]) -> tuple[int, int]:
        """Of which programs are compiled: those of the largest document and blank, rounded up."""
        blank = max(place.stop - place.start for document in documents for place in document.blanks)
        return bucket(max(len(document.tokens) for document in documents)), bucket(blank)

    def _request(self, line: Line, document: Document, way: Way) -> Request:
        pieces = (line.before, line.after if way.sees == BOTH else "")
        return Request(Template(pieces, document.sizes), way.decoding, len(document.tokens))


def _likelihood(decoding: Decoding) -> str:
    """The likelihood of the truth that goes with a decoding; others have it from left to right."""
    return decoding.mode if decoding.mode in ("diffusion", "block_diffusion", "fim") else "exact"


def ways(model: Model) -> dict[str, Way]:
    """The decoders of a model's objective, one token a pass first; and from the left alone, as what it was made from does."""
    in_order = {"left to right": Decoding(mode="ar"), "speculative": Decoding(mode="speculative")}
    sure = {f"the surest {n}": Decoding(mode="dynamic", threshold=0.0, commit=n) for n in (1, 2, 4)}
    sure["dynamic 0.3"] = Decoding(mode="dynamic", threshold=0.3)
    diffusion = {f"{n} passes": Decoding(mode="diffusion", steps=n) for n in (32, 8, 4, 2)}
    remasked = {"8 passes, 1 remasked": Decoding(mode="diffusion", steps=8, remask=1)}
    blocks = {f"{n} passes a block": Decoding(mode="block_diffusion", steps=n) for n in (4, 2, 1)}
    both: dict[str, dict[str, Decoding]] = {
        "a3": in_order | sure,
        "diffusion": diffusion | remasked,
        "block_diffusion": blocks,
        "fim": {"middle last": Decoding(mode="fim")},
        "ar": {},
    }
    own = {name: Way(decoding) for name, decoding in both[model.record.objective].items()}
    return own | {LEFT: Way(Decoding(mode="ar"), LEFT)}
