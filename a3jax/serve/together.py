"""A service on several processes: process 0 answers clients and tells the others each turn, and all of them make it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Size, Template
from a3jax.devices.agreement import from_runtime
from a3jax.devices.board import telling
from a3jax.devices.interrupt import stop_requests
from a3jax.devices.processes import is_alone
from a3jax.generate.joining import News, Together
from a3jax.serve.requests import Text
from a3jax.weights.loading import Model


def turn(together: Together, leaving: Sequence[int], joining: Mapping[int, Text]) -> News:
    """One turn: who leaves, who joins, and a pass of all that are there."""
    for number in leaving:
        together.leave(number)
    for number, (template, decoding) in joining.items():
        together.join(number, template, decoding)
    return together.turn()


def tell_turn(leaving: Sequence[int], joining: Mapping[int, Text]) -> None:
    """In process 0, before it makes a turn; nothing where it is alone."""
    if not is_alone():
        texts = [[number, _written(text.template), dataclasses.asdict(text.decoding)] for number, text in joining.items()]
        telling().tell([list(leaving), texts])


def tell_end() -> None:
    """In process 0, when there will be no turn any more."""
    if not is_alone():
        telling().tell(None)


def follow(model: Model, most: int) -> int:
    """In the others: make the turns that are told, to the end; how many passes. Until then signals are left to process 0."""
    together = Together(model, most)
    with stop_requests():
        while (told := telling().hear()) is not None:
            leaving, texts = told
            joining = {number: Text(_read(template), _decoding(decoding)) for number, template, decoding in texts}
            for new in turn(together, leaving, joining).values():
                if isinstance(new, Exception) and from_runtime(new):
                    raise new  # anything else process 0 has met too, and says it to its client
    return together.passes


def _written(template: Template) -> dict[str, Any]:
    sizes = [[type(size).__name__, *_numbers(size)] for size in template.sizes]
    return {"pieces": template.pieces, "sizes": sizes, "whole": template.whole}


def _numbers(size: Size) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, Range | Open) else (size,)


def _read(written: dict[str, Any]) -> Template:
    kinds: dict[str, Any] = {"Range": Range, "Open": Open, "int": int}
    sizes = tuple(kinds[kind](*numbers) for kind, *numbers in written["sizes"])
    return Template(tuple(written["pieces"]), sizes, written["whole"])


def _decoding(written: dict[str, Any]) -> Decoding:
    return Decoding(**{**written, "stop": tuple(written["stop"])})
