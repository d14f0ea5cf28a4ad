"""What is asked for: every form of a request, and its answer."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from a3jax.decode.document import lay_out
from a3jax.decode.settings import Decoding, DecodingOptions
from a3jax.decode.template import Size, Template, has_open, parse
from a3jax.errors import UserError
from a3jax.files.reading import check_text
from a3jax.generate.chat import ANSWER, asked
from a3jax.generate.filling import Observe, Tokens, check_ends, check_stop, document_of
from a3jax.generate.infill import Infilled, infill_batch
from a3jax.generate.objective import check_mode
from a3jax.weights.loading import Model

ROOM = 32
"""Tokens that a blank between two texts has room for where nothing else is said: as much as `slack` leaves by default."""


@dataclass(frozen=True)
class Wanted:
    """A text that is wanted, in one of the forms that `check` allows. Names are those of options and of JSONL fields."""

    text: str | None = None
    """A template; with `rewrite`, plain text."""
    rewrite: str | None = None
    """The part of `text` to fill anew."""
    prompt: str | None = None
    """Text to continue."""
    before: str | None = None
    """Text before what is to be filled in."""
    after: str | None = None
    """Text after it."""
    tokens: int | str | None = None
    """How many to fill in: N, MIN-MAX, or ..N where nobody knows. Between before and after it is ..32 if not given, and at
    most 256 for an answer."""
    messages: tuple[dict[str, Any], ...] | None = None
    """A chat, to be answered."""

    def check(self) -> None:
        """Raises `UserError` where the fields are no form of request, or contradict each other."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        forms = {"text": "text", "prompt": "prompt", "before": "before or after", "after": "before or after"}
        forms |= {"messages": "messages"}
        chosen = list(dict.fromkeys(form for name, form in forms.items() if name in given))
        if len(chosen) != 1:
            wrong = "nothing to fill is given" if not chosen else f"{' and '.join(chosen)} are given together"
            raise UserError(f"{wrong}; give a text with blanks, or a prompt, or messages, or what stands before and after")
        if self.rewrite is not None and self.text is None:
            raise UserError(f"rewrite names a part of a text; give text, not {chosen[0]}")
        if self.text is not None and self.rewrite is None and self.tokens is not None:
            raise UserError("tokens is for a prompt, before and after, or rewrite; a text says [[8]] itself")
        if self.text is None and self.messages is None and self.tokens is None and not self.after:
            raise UserError(f"{chosen[0]} needs tokens, the number to fill in")
        for name, value in given.items():
            check_text(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        if self.tokens is not None:
            _size(self.tokens)
        if self.text is not None and self.rewrite is None:
            _ = self._parsed
        elif self.text is not None and (count := _occurrences(self.text, self.rewrite or "")) != 1:
            raise UserError(f"rewrite is found {count} times in the text; give a part that stands there once")

    def template(self, model: Model, heal: bool = True) -> Template:
        """Of fields that are right, with the model's tokens and its way of writing a chat. Raises `UserError` for what has no
        place there."""
        if self.text is not None and self.rewrite is None:
            return self._parsed
        if self.messages is not None:
            return asked(model, self.messages, _size(self.tokens or ANSWER))
        before, after = self.before or self.prompt or "", self.after or ""
        if self.text is not None and self.rewrite is not None:
            before, _, after = self.text.partition(self.rewrite)
        words = self._words
        if self.rewrite and words is None:
            healing = model.healing if heal else None
            (words,) = lay_out((before, ""), [self.rewrite], model.codec, healing).sizes
        return Template((before, after), (_size(words),))

    @functools.cached_property
    def _parsed(self) -> Template:
        return parse(self.text or "")

    def decoding(self, choices: DecodingOptions, **changes: Any) -> Decoding:
        """How to fill it: a prompt or a chat is for a text that may end."""
        if self.text is not None and self.rewrite is None:
            sizes = self._parsed.sizes
        else:
            sizes = () if self._words is None else (_size(self._words),)
        ends = self.prompt is not None or self.messages is not None
        decoding = choices.checked(ends=choices.ends or ends, **changes)
        check_stop(decoding.stop, decoding.ends or has_open(sizes))
        return decoding

    @property
    def _words(self) -> int | str | None:
        """`tokens`, or what stands for it; None where a part that is rewritten keeps its number."""
        return f"..{ROOM}" if self.tokens is None and self.rewrite is None else self.tokens


@dataclass(frozen=True)
class Request:
    """A template with how its blanks are to be filled."""

    template: Template
    decoding: Decoding
    length: int
    """Tokens of the document, with the largest size of every blank."""


def request(model: Model, wanted: Wanted, decoding: Decoding) -> Request:
    """The request for what is `wanted`. Raises `UserError` where it cannot be answered."""
    template = wanted.template(model, decoding.heal)
    length = len(document_of(model, template, decoding.heal).tokens)
    check_ends(model, template, decoding)
    check_mode(model, decoding)
    return Request(template, decoding, length)


def fill(
    model: Model,
    requests: Sequence[Request],
    batch: int,
    observe: Observe | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[Infilled]:
    """Fill requests, `batch` at a time, those together that share a program and are of like length.

    Every batch is filled up to the same size, so that it is compiled once; `observe` sees only what was asked for. `done` is
    told how many are filled.
    """
    filled: dict[int, Infilled] = {}
    programs: dict[tuple[Any, ...], list[int]] = {}
    for i in sorted(range(len(requests)), key=lambda i: requests[i].length):
        programs.setdefault(requests[i].decoding.program, []).append(i)
    for alike in programs.values():
        for begin in range(0, len(alike), batch):
            chosen = alike[begin : begin + batch]
            rows = [requests[i] for i in chosen + [chosen[-1]] * (batch - len(chosen))]
            look = observe and functools.partial(_first, observe, len(chosen))
            each = infill_batch(model, [row.template for row in rows], [row.decoding for row in rows], look)
            filled |= dict(zip(chosen, each))
            done(len(chosen))
    return [filled[i] for i in range(len(requests))]


def _first(observe: Observe, count: int, texts: list[Tokens]) -> None:
    observe(texts[:count])


def answer(filled: Infilled) -> dict[str, Any]:
    """What JSON says of a filled text."""
    blanks = [dataclasses.asdict(blank) for blank in filled.blanks]
    return {
        "text": filled.text,
        "blanks": blanks,
        "log_prob": filled.log_prob,
        "forwards": filled.forwards,
        "finished": filled.finished,
    }


def _size(words: int | str | None) -> Size:
    if not re.fullmatch(r"[0-9]+(-[0-9]+)?|\.\.[0-9]+", str(words)):
        raise UserError(f"tokens is '{words}'; it must be a number such as 8, a range such as 4-12, or ..32 for at most 32")
    return parse(f"[[{words}]]").sizes[0]


def _occurrences(text: str, part: str) -> int:
    """How often `part` stands in `text`, overlaps included; 0 if it is empty."""
    count, at = 0, text.find(part) if part else -1
    while at >= 0:
        count, at = count + 1, text.find(part, at + 1)
    return count
