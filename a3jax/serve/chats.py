"""Requests for the assistant's next message, in the shape of OpenAI's chat completions."""

from dataclasses import dataclass
from typing import Any, ClassVar

from a3jax.decode.template import Template
from a3jax.errors import UserError
from a3jax.generate.chat import ANSWER, asked
from a3jax.generate.filling import document_of
from a3jax.serve.completions import Growing
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Text
from a3jax.weights.loading import Model


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(Growing):
    """POST /v1/chat/completions: a chat as the model's own template writes it, and a blank for what is said next."""

    given: ClassVar = "messages"
    sizes: ClassVar = "max_tokens"
    messages: tuple[Any, ...]
    """Objects with a role and a content."""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    """The newer name of the same."""

    def texts(self, limits: Limits, model: Model) -> list[Text]:  # noqa: D102
        if self.logprobs is not None:
            raise Refused("logprobs are not given here; leave them out, or ask /v1/completions", "logprobs")
        return super().texts(limits, model)

    def templates(self, model: Model) -> list[Template]:  # noqa: D102
        most = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        if most is not None and most < 1:
            raise Refused(f"max_tokens is {most}; it must be at least 1", "max_tokens")
        messages = [_plain(message, f"messages[{i}]") for i, message in enumerate(self.messages)]
        try:
            shortest = asked(model, messages, 1)
            room = model.config.context - len(document_of(model, shortest).tokens) + 1
        except UserError as error:
            raise Refused(str(error), "messages") from None
        return [Template(shortest.pieces, (most or min(ANSWER, room),), whole=True)]

    @property
    def continues(self) -> bool:  # noqa: D102
        return True


def _plain(message: Any, name: str) -> Any:
    """A message whose content is a text where it was a list of parts that are texts; what is no message stays as it is."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise Refused(f"{name} has a part that is no text; this model reads nothing else", "messages")
    return message | {"content": "".join(part["text"] for part in content)}
