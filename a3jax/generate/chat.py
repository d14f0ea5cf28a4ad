"""Answers in a chat: the messages as the model's own template writes them, and a blank for what the assistant says next."""

from collections.abc import Mapping, Sequence
from typing import Any

from a3jax.data.sources.interface import Fault
from a3jax.data.sources.rows import messages_of
from a3jax.decode.template import Size, Template
from a3jax.errors import UserError
from a3jax.generate.infill import Infilled, infill_batch
from a3jax.weights.loading import Model

ANSWER = 256
"""Tokens that an answer has room for where nothing else is said."""


def chat(model: Model, messages: Sequence[Mapping[str, Any]], tokens: int = ANSWER, **changes: Any) -> Infilled:
    """What the assistant says next in a chat, up to `tokens` tokens: the blank of the result, `.blanks[0].text`.

    `messages` have a `role` and a `content` each, `{"role": "user", "content": "..."}`. `changes` are fields of `Decoding`;
    from left to right an answer ends where the model ends its turn. Raises `UserError` for a model without a chat template,
    messages that are none or that the template refuses, and a chat that is longer than the model's context.
    """
    return infill_batch(model, [asked(model, messages, tokens)], **{"ends": True, **changes})[0]


def asked(model: Model, messages: Sequence[Mapping[str, Any]], tokens: Size = ANSWER) -> Template:
    """A chat with a blank for the assistant's next message behind it. Raises `UserError` as `chat` does."""
    from a3jax.data.chat_template import template_of

    read = messages_of(list(messages), "the chat", "messages")
    if isinstance(read, Fault):
        raise UserError(read.message)
    if not read:
        raise UserError("messages is an empty list; give at least one message")
    template = template_of(model.codec, model.name)
    return Template((template.render(read, reply=True), ""), (tokens,), whole=True)
