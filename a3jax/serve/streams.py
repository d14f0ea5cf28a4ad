"""Texts that are streamed while they are filled: how each stands, and what is new of it."""

import asyncio
from typing import NamedTuple

from a3jax.generate.filling import Tokens


class Piece(NamedTuple):
    """What a text has more of than before."""

    number: int
    """Of the text."""
    text: str
    finished: str | None
    """Why it ends, where it does."""
    counts: tuple[int, int]
    """Tokens of the text that were given, and that are written by now."""


class Updates:
    """How each text of a stream stands, the newest only, however slowly the client takes it."""

    def __init__(self) -> None:
        self._newest: dict[int, Tokens | None] = {}
        self._some = asyncio.Event()

    def put(self, number: int, tokens: Tokens | None) -> None:
        """A text has grown, or is filled where `tokens` is None."""
        self._newest[number] = tokens
        self._some.set()

    async def get(self) -> tuple[int, Tokens | None]:
        """A text that has grown since it was last asked for."""
        await self._some.wait()
        number, tokens = self._newest.popitem()
        if not self._newest:
            self._some.clear()
        return number, tokens
