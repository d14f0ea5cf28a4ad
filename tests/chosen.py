"""Which cases of a test `make test` runs."""

from collections.abc import Iterable

import pytest


def long_after(count: int, cases: Iterable) -> list:
    """The parameters of a test whose first `count` cases show what it is about; the others are left to `make test-long`."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=[] if i < count else [pytest.mark.long]) for i, value in enumerate(values)]
