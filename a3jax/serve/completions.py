"""Requests for text behind a prompt, in the shape of OpenAI's completions, which may be streamed."""

from dataclasses import dataclass
from typing import Any, ClassVar

from a3jax.curriculum.stage import parse_order
from a3jax.decode.template import Open, Template
from a3jax.errors import UserError
from a3jax.files.strict import build
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Request, Text
from a3jax.weights.loading import Model


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream tells besides the text."""

    include_usage: bool = False
    """A last event counts tokens."""
    include_obfuscation: bool = False
    """Nothing is ever added to events."""


@dataclass(frozen=True, kw_only=True)
class Growing(Request):
    """A request for a blank behind a text, which may be streamed while it is filled."""

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def texts(self, limits: Limits, model: Model) -> list[Text]:  # noqa: D102
        if self.stream:
            family, _ = parse_order(self.decoding.order)
            if self.decoding.finds_order or family != "in_order" or self.decoding.revise:
                raise Refused("stream needs text that comes from left to right; leave mode, order and revise out", "stream")
            if self.logprobs is not None:
                raise Refused("logprobs are not streamed; leave stream or logprobs out", "logprobs")
        elif self.stream_options != StreamOptions():
            raise Refused("stream_options are for streams; leave them out, or set stream", "stream_options")
        return super().texts(limits, model)


@dataclass(frozen=True, kw_only=True)
class Completion(Growing):
    """POST /v1/completions: a prompt and a blank behind it, and perhaps text behind that."""

    given: ClassVar = "prompt"
    sizes: ClassVar = "max_tokens"
    prompt: str | tuple[Any, ...]
    """A text or its tokens, or a list of either."""
    suffix: str = ""
    max_tokens: int = 16
    echo: bool = False

    @property
    def only_echoes(self) -> bool:
        """Whether nothing is written, and the prompts come back, perhaps with their likelihood."""
        return self.max_tokens == 0 and self.echo and not self.suffix

    def templates(self, model: Model) -> list[Template]:  # noqa: D102
        prompts = self.prompts(model)
        if self.only_echoes:
            return []
        if self.max_tokens < 1:
            raise Refused(
                f"max_tokens is {self.max_tokens}; it must be at least 1, or 0 with echo and no suffix", "max_tokens"
            )
        ends = model.record.blanks_end and self.decoding.fills_to_ends
        size = Open(self.max_tokens) if self.suffix and ends else self.max_tokens
        return [Template((prompt, self.suffix), (size,)) for prompt in prompts]

    def prompts(self, model: Model) -> list[str]:
        """The prompts as texts. Raises `Refused` for tokens that are not those of a text."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise Refused("prompt is an empty list; give at least one text", "prompt")
        several = [self.prompt] if type(self.prompt[0]) is int else self.prompt
        return [_prompt(one, f"prompt[{i}]", model) for i, one in enumerate(several)]

    @property
    def continues(self) -> bool:  # noqa: D102
        return not self.suffix


def _prompt(prompt: Any, name: str, model: Model) -> str:
    """A text, from itself or from its tokens: those that this model's tokenizer makes of it, with or without its start."""
    try:
        if not isinstance(prompt, list | tuple):
            return str(build(str, prompt, name))
        ids = [build(int, token, f"{name}[{i}]") for i, token in enumerate(prompt)]
    except UserError as error:
        raise Refused(str(error), "prompt") from None
    codec = model.codec
    if strange := [token for token in ids if not 0 <= token < codec.vocab]:
        raise Refused(f"{name} holds token {strange[0]}; this model's tokenizer has {codec.vocab}", "prompt")
    ids = ids[1:] if ids and ids[0] == codec.start else ids
    text = codec.decode(ids)
    if codec.encode(text) != ids:
        raise Refused(f"{name} holds tokens that this model's tokenizer makes of no text; give the text instead", "prompt")
    return text
