"""Combinators: which fields of an experiment take which values, as small values that combine.

    def sweep() -> Trials:
        return product({"optimizer.peak_lr": [1e-4, 3e-4], "curriculum": {"a": mixed(600), "b": direct(600)}}, seeds(3))

A trial is a set of changes to an experiment, a field by its dotted name each. Values are listed, or given a label each in a
dict, as those that are no plain numbers or words must be. Wherever trials are taken, a dict of fields stands for them.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from a3jax.errors import UserError

Values = Sequence[Any] | Mapping[str, Any]
Fields = Mapping[str, Values]
Draw = Callable[[random.Random], Any]


class Value(NamedTuple):
    """What a field is set to, and how that is called."""

    label: str
    value: Any


@dataclass(frozen=True)
class Trials:
    """What every trial changes: values by dotted name."""

    changes: tuple[Mapping[str, Value], ...]

    def __len__(self) -> int:
        return len(self.changes)


def product(*factors: Trials | Fields) -> Trials:
    """Every combination of a trial of each factor. Raises `UserError` if two factors change one field."""
    return Trials(tuple(_joined(parts) for parts in itertools.product(*(factor.changes for factor in _flat(factors)))))


def zip_(*factors: Trials | Fields) -> Trials:
    """The first trials of all factors together, then the second ones, and so on. Raises `UserError` if one has more."""
    flat = _flat(factors)
    if len({len(factor) for factor in flat}) > 1:
        raise UserError(f"zip_ has factors of {', '.join(str(len(factor)) for factor in flat)} trials; give each as many")
    return Trials(tuple(_joined(parts) for parts in zip(*(factor.changes for factor in flat))))


def chain(*parts: Trials | Fields) -> Trials:
    """All trials of one part, then all of the next."""
    return Trials(tuple(changes for part in parts for changes in product(part).changes))


def sample(count: int, fields: Mapping[str, Values | Draw], seed: int = 0) -> Trials:
    """Trials that draw every field on its own: from values, or by a function such as `log_uniform(1e-5, 1e-3)`.

    More trials, or more fields, leave what was drawn before as it was.
    """

    def drawn(path: str, values: Values | Draw) -> Trials:
        source = random.Random(f"{seed} {path}")
        if callable(values):
            return _axis(path, [values(source) for _ in range(count)])
        known = _axis(path, values).changes
        return Trials(tuple(source.choice(known) for _ in range(count)))

    return zip_(*(drawn(path, values) for path, values in fields.items()))


def uniform(low: float, high: float) -> Draw:
    """Draws between two numbers, to three digits."""
    return lambda source: float(f"{source.uniform(low, high):.3g}")


def log_uniform(low: float, high: float) -> Draw:
    """Draws between two positive numbers, every octave being as likely, to three digits."""
    return lambda source: float(f"{math.exp(source.uniform(math.log(low), math.log(high))):.3g}")


def seeds(count: int) -> Trials:
    """The seeds from 0; the report takes runs that differ in nothing else together."""
    return product({"seed": range(count)})


def _flat(factors: Sequence[Trials | Fields]) -> list[Trials]:
    """Trials as they are, and those of each field of a dict."""
    return [
        trials
        for factor in factors
        for trials in ([factor] if isinstance(factor, Trials) else [_axis(*field) for field in factor.items()])
    ]


def _axis(path: str, values: Values) -> Trials:
    named = values.items() if isinstance(values, Mapping) else [(_label(path, value), value) for value in values]
    return Trials(tuple({path: Value(label, value)} for label, value in named))


def _label(path: str, value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if value is None or isinstance(value, str | int):
        return str(value)
    raise UserError(f"{path} takes a {type(value).__name__}, which needs a label: {{{path!r}: {{LABEL: VALUE, ...}}}}")


def _joined(parts: Sequence[Mapping[str, Value]]) -> Mapping[str, Value]:
    joined: dict[str, Value] = {}
    for changes in parts:
        for path in changes:
            if path in joined:
                raise UserError(f"{path} is changed twice in one trial; leave it to one of the factors")
        joined |= changes
    return joined
