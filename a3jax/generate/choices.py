"""The options of decoding as the command line and a line of JSONL set them: some or all, one over the other."""

import dataclasses
from typing import Any

from a3jax.decode.settings import Decoding


class Choices(Decoding):
    """How blanks are filled. Options of one mode are refused in another."""

    def __post_init__(self) -> None:
        pass  # not checked yet: the form of a request is still to say whether its text may end

    def checked(self, **changes: Any) -> Decoding:
        """With `changes`. Raises `UserError` as `Decoding` does."""
        return Decoding(**{**dataclasses.asdict(self), **changes})


DEFAULTS = Choices()
