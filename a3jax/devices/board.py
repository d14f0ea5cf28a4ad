"""Notes that processes leave for each other in the memory of process 0, where JAX's coordination service keeps them.

No device takes part and no disk is touched: it goes on while a step hangs, and whoever waits here keeps no device waiting.
"""

import functools
import json
import threading
from typing import Any

import jax
from jax._src import distributed

_OURS = "a3jax"
_PART = 2**20
"""Characters of one note, at most; what is told may be longer."""
_WAIT_MS = 2000
"""How long a call waits; in between, this process hears of signals."""


class Board:
    """Where any process puts up notes, and each can read all of them; of a process alone, its own."""

    def __init__(self) -> None:
        self._client = distributed.global_state.client  # JAX has no public name for it
        self._own: dict[str, str] = {}

    def put(self, topic: str, name: str, note: str) -> None:
        """Put up a note, in the place of the one of that name. Raises `JaxRuntimeError` if process 0 is gone."""
        if self._client is None:
            self._own[f"{_OURS}/{topic}/{name}"] = note
        else:
            self._client.key_value_set(f"{_OURS}/{topic}/{name}", note, allow_overwrite=True)

    def read(self, topic: str) -> dict[str, str]:
        """Every note of a topic by its name, none while there is none. Raises as `put`."""
        begin = f"{_OURS}/{topic}/"
        notes = list(self._own.items()) if self._client is None else self._client.key_value_dir_get(begin)
        return {key.removeprefix(begin): note for key, note in notes if key.startswith(begin)}

    def take(self, topic: str, name: str) -> str:
        """A note, waited for as long as it takes. Raises as `put`; for several processes only."""
        assert self._client is not None
        while True:
            try:
                return self._client.blocking_key_value_get(f"{_OURS}/{topic}/{name}", _WAIT_MS)
            except jax.errors.JaxRuntimeError as error:
                if not str(error).startswith("DEADLINE_EXCEEDED"):
                    raise

    def remove(self, topic: str) -> None:
        """Remove all notes of a topic; for several processes only."""
        assert self._client is not None
        self._client.key_value_delete(f"{_OURS}/{topic}/")


class Telling:
    """Process 0 tells all others one thing after the other, and waits for none; each hears all of them, however late."""

    def __init__(self) -> None:
        self._board, self._lock = Board(), threading.Lock()
        self._count, self._removed = 0, 0

    def tell(self, value: Any) -> None:
        """In process 0: a JSON value, to all others."""
        text = json.dumps(value)
        parts = [text[begin : begin + _PART] for begin in range(0, len(text), _PART)]
        with self._lock:
            self._count += 1
            for number, part in enumerate(parts):
                self._board.put(f"told/{self._count}", str(number), part)
            self._board.put(f"told/{self._count}", "parts", str(len(parts)))
            heard = self._board.read("heard").values()
            if len(heard) == jax.process_count() - 1:
                for number in range(self._removed + 1, min(map(int, heard)) + 1):
                    self._board.remove(f"told/{number}")
                    self._removed = number

    def hear(self) -> Any:
        """In the others: the next value. Raises `JaxRuntimeError` if process 0 is gone."""
        self._count += 1
        topic = f"told/{self._count}"
        parts = [self._board.take(topic, str(number)) for number in range(int(self._board.take(topic, "parts")))]
        self._board.put("heard", str(jax.process_index()), str(self._count))
        return json.loads("".join(parts))


@functools.cache
def telling() -> Telling:
    """That of this process; to be asked for when the processes have found each other."""
    return Telling()
