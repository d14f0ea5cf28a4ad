"""Chats as the template of a model writes them: Jinja, rendered as transformers renders it, so that the tokens are the same.

What is to be learned of a chat is what the assistant writes. A template can say itself what that is, between the marks
`{% generation %}` and `{% endgeneration %}`. Of any other it is found by writing the chat up to each of the assistant's
messages: what comes between the prompt that asks for an answer and the beginning of the next message is the response, the
end of the turn included. A template that writes earlier messages otherwise once more follow, as those do that drop thoughts,
needs marks.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

import jinja2
import numpy as np
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Name, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from a3jax.data.sources.rows import ASSISTANT
from a3jax.data.tokenizer import TextCodec
from a3jax.data.tokenizer_files import named_tokens, settings_of
from a3jax.errors import UserError, first_line

FILE = "chat_template.jinja"
"""Where a template lies beside a tokenizer; older ones stand in `tokenizer_config.json`."""
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARKS = "_a3jax_marks"
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's thoughts go by; templates read the first, or the second."""

Messages = Sequence[Mapping[str, Any]]


class Written(NamedTuple):
    """A chat as text."""

    text: str
    responses: tuple[tuple[int, int], ...]
    """The spans of characters, [begin, end) in order, that are to be learned."""

    def said(self, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
        """Which of T tokens, whose characters are those of `offsets`, hold a character of a response: bool."""
        begin_T, end_T = np.array(offsets, np.int64).reshape(-1, 2).T
        said_T = np.zeros(len(begin_T), bool)
        for begin, end in self.responses:
            said_T |= (end_T > begin) & (begin_T < end)
        return said_T


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it may name."""

    source: str
    tokens: Mapping[str, str]
    """Texts of special tokens by their role, such as `bos_token`."""
    where: str
    """What messages call it."""

    def render(self, messages: Messages, reply: bool = False) -> str:
        """Messages as text and, with `reply`, what asks for the assistant's next. Raises `UserError` where it does not go."""
        return self._render(messages, reply)[0]

    def written(self, messages: Messages, given: int = 0) -> Written:
        """A whole chat, of which the first `given` messages are a prompt. Raises `UserError` where it does not go."""
        text, spans = self._render(messages)
        begin = self._before(text, messages, given) if given else 0
        if not _MARKED.search(self.source):
            said = [number for number in range(given, len(messages)) if messages[number]["role"] == ASSISTANT]
            spans = [(self._before(text, messages, number), self._length(text, messages, number + 1)) for number in said]
        responses = tuple((max(low, begin), high) for low, high in spans if max(low, begin) < high)
        if not responses:
            raise UserError(f"{self.where} writes nothing that the assistant says")
        return Written(text, responses)

    def turn_end(self, codec: TextCodec) -> int | None:
        """The token that ends an answer: the first special one behind its text. None for a template that has none."""
        said = "Hello"
        written = self.written([{"role": "user", "content": said}, {"role": ASSISTANT, "content": said}])
        behind = written.text[slice(*written.responses[-1])].rpartition(said)[2]
        special = codec.tokenizer.get_added_tokens_decoder()
        return next((token for token in codec.encode(behind, inside=True) if token in special), None)

    def _before(self, text: str, messages: Messages, number: int) -> int:
        """How many characters of a chat, whose whole is `text`, come before what a message says."""
        return self._length(text, messages, number, reply=messages[number]["role"] == ASSISTANT)

    def _length(self, text: str, messages: Messages, count: int, reply: bool = False) -> int:
        """How many characters of it the first messages take."""
        written = text if count == len(messages) else self.render(messages[:count], reply)
        if not text.startswith(written):
            what = f"{self.where} writes the first {count} messages otherwise where more follow"
            raise UserError(f"{what}; put {{% generation %}} and {{% endgeneration %}} around what the assistant writes")
        return len(written)

    def _render(self, messages: Messages, reply: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans that the template marks."""
        marks, text = _Marks(), ""
        known = {**self.tokens, "tools": None, "documents": None, "add_generation_prompt": reply, _MARKS: marks}
        try:
            for piece in _compiled(self.source, self.where).generate(messages=[_plain(one) for one in messages], **known):
                text += piece
                marks.at = len(text)
        except UserError:
            raise
        except Exception as error:  # whatever its expressions can raise
            raise UserError(f"{self.where} does not take these messages: {first_line(error)}") from None
        return text, marks.spans


def template_of(codec: TextCodec, name: str) -> ChatTemplate:
    """The template that belongs to a tokenizer; `name` names its folder in messages. Raises `UserError` if there is none."""
    settings = settings_of(codec.files, f"{name}/tokenizer.json")
    source, where = settings.get("chat_template"), f"{name}/tokenizer_config.json"
    if isinstance(source, list):  # several, by name
        source = {one["name"]: one["template"] for one in source}.get("default")
    if FILE in codec.files:
        source, where = codec.files[FILE].decode(errors="replace"), f"{name}/{FILE}"
    if not isinstance(source, str):
        raise UserError(
            f"{name} has no chat template; prepare chats with --chat-template FILE, and a run knows it from then on"
        )
    _compiled(source, where)
    return ChatTemplate(source, named_tokens(codec.files, f"{name}/tokenizer.json"), where)


class _Marks:
    """Where the parts between marks stand in what is written."""

    def __init__(self) -> None:
        self.at, self.spans = 0, list[tuple[int, int]]()

    def note(self, part: str) -> None:
        self.spans.append((self.at, self.at + len(part)))


class _Generation(Extension):
    """The statement `generation`, which writes its body and notes where."""

    tags = {"generation"}  # noqa: RUF012, as Jinja has it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_note", [Name(_MARKS, "load")]), [], [], body).set_lineno(line)

    @staticmethod
    def _note(marks: _Marks, caller: Any) -> str:
        part = str(caller())
        marks.note(part)
        return part


@functools.lru_cache(maxsize=16)
def _compiled(source: str, where: str) -> jinja2.Template:
    """Raises `UserError` for what is no template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where}:{error.lineno} is no chat template: {first_line(error)}") from None


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without fields that hold nothing, its thoughts under the names that templates know."""
    own = {name: value for name, value in message.items() if value is not None}
    thoughts = next((own[name] for name in _REASONING if name in own), None)
    return own if thoughts is None else {"thinking": thoughts, **own, "reasoning_content": thoughts}


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Unlike Jinja's own it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
