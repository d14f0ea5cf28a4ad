"""A service on several processes: process 0 answers clients and tells the others each batch, and all of them fill it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Size, Template
from a3jax.devices.agreement import from_runtime
from a3jax.devices.board import telling
from a3jax.devices.interrupt import stop_requests
from a3jax.devices.processes import is_alone
from a3jax.generate.infill import infill_batch
from a3jax.weights.loading import Model


def tell_batch(templates: Sequence[Template], decodings: Sequence[Decoding]) -> None:
    """In process 0, before it fills a batch; nothing where it is alone."""
    if not is_alone():
        telling().tell([[_written(one) for one in templates], [dataclasses.asdict(one) for one in decodings]])


def tell_end() -> None:
    """In process 0, when there will be no batch any more."""
    if not is_alone():
        telling().tell(None)


def follow(model: Model) -> int:
    """In the others: fill what is told, to the end; how many batches. Until then signals are left to process 0."""
    count = 0
    with stop_requests():
        while (told := telling().hear()) is not None:
            templates, decodings = told
            try:
                infill_batch(model, [_read(one) for one in templates], [_decoding(one) for one in decodings], _look_away)
            except Exception as error:
                if from_runtime(error):
                    raise  # anything else process 0 has met too, and says it to its client
            count += 1
    return count


def _look_away(_: object) -> None:
    """Process 0 looks on after every pass, and whoever looks on reads every pass's result: all must."""


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
