"""What a row of a source becomes: a text, or a chat. Which columns that takes is the row's affair, reading them the source's.

Chats come in three shapes, told apart by what stands in them: a list of messages with `role` and `content`, as OpenAI and
transformers have it; one with `from` and `value`, as ShareGPT has it; and a prompt with its response in two columns, or in
three behind a system's message, each a text or again a list of messages.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from a3jax.data.sources.interface import Chat, Document, Fault, Row, document

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
_SHARE_GPT = {"human": "user", "gpt": ASSISTANT}
"""ShareGPT's names of roles; others are the same as here."""


@dataclass(frozen=True)
class TextRow:
    """A text, or token ids, in one column."""

    column: str
    option = "--column"

    @property
    def columns(self) -> tuple[str, ...]:  # noqa: D102, the interface says it
        return (self.column,)

    def document(self, values: Sequence[Any], where: str) -> Document:  # noqa: D102
        return document(values[0], where, self.column)


@dataclass(frozen=True)
class ChatRow:
    """A chat: a column of messages, or columns of prompts and of their responses, a system's message before them if three."""

    columns: tuple[str, ...]
    option = "--chat"

    def document(self, values: Sequence[Any], where: str) -> Document:
        """The chat of a row; of several columns all but the last are the prompt, whose messages are given."""
        parts: list[list[dict[str, Any]]] = []
        for column, value, role in zip(self.columns, values, self._roles):
            read = messages_of(value, where, column, role)
            if isinstance(read, Fault):
                return read
            parts.append(read)
        messages = [message for part in parts for message in part]
        if not messages:
            return ""
        if all(message["role"] != ASSISTANT for message in parts[-1]):
            said = f"{where} has no message of the assistant in '{self.columns[-1]}', so there is nothing to learn"
            return Fault("no assistant", said)
        try:
            json.dumps(messages, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which is no character
            return Fault("not Unicode text", f"{where} is not Unicode text: {error}")
        except TypeError as error:
            return Fault("no chat", f"{where} holds what JSON has not: {error}")
        return Chat(tuple(messages), len(messages) - len(parts[-1]), where)

    @property
    def _roles(self) -> tuple[str, ...]:
        """Who speaks where a column holds a text in place of messages."""
        return ("system", "user", ASSISTANT)[-len(self.columns) :] if len(self.columns) > 1 else ("",)


def row_of(column: str, chat: Sequence[str]) -> Row:
    """The row that options ask for."""
    return ChatRow(tuple(chat)) if chat else TextRow(column)


def messages_of(value: Any, where: str, column: str, role: str = "") -> list[dict[str, Any]] | Fault:
    """The messages in a column; a text is one message of `role`, where there is one."""
    if value is None or (role == "system" and value in ("", b"")):
        return []
    if isinstance(value, str | bytes):
        text = document(value, where, column)
        if isinstance(text, Fault):
            return text
        if role:
            return [{"role": role, "content": text}]
    if isinstance(value, Mapping) and value and all(isinstance(item, list | np.ndarray) for item in value.values()):
        value = [dict(zip(value, items)) for items in zip(*value.values())]  # as TFDS has a list of messages
    if not isinstance(value, list | np.ndarray):
        kind = "an object" if isinstance(value, Mapping) else "a text" if isinstance(value, str | bytes) else f"{value!r:.40}"
        return Fault("no chat", f"{where} has {kind} in '{column}', not a list of messages: name another with --chat")
    found = []
    for number, message in enumerate(value, 1):
        read = _message(message)
        if isinstance(read, str):
            return Fault("no chat", f"{where} has a message {number} in '{column}' {read}")
        if read["role"] not in ROLES:
            said = f"{where} has a message {number} in '{column}' of the role {read['role']!r:.40}, which is unknown"
            return Fault("unknown role", f"{said}; it must be {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        found.append(read)
    return found


def _message(message: Any) -> dict[str, Any] | str:
    """A message as transformers has it, without fields that hold nothing; or what is wrong with it."""
    if not isinstance(message, Mapping):
        return f"that is no object but {message!r:.40}"
    own = {name: _text(value) for name, value in message.items() if value is not None}
    if "role" not in own and {"from", "value"} <= own.keys():
        said = own.pop("from")
        own = {"role": _SHARE_GPT.get(said, said), "content": own.pop("value"), **own}
    if "role" not in own:
        return "without a role"
    if not isinstance(own.get("content", ""), str | list) or not ("content" in own or "tool_calls" in own):
        return "without a content that is text"
    return own


def _text(value: Any) -> Any:
    """TFDS has bytes where others have text, and NumPy's lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
